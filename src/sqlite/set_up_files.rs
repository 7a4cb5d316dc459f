//! Which files this process has set up, and the identity of each: as many as fit into a fixed amount of memory.
//! A forgotten file is set up once more.

use std::collections::HashMap;
use std::path::Path;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use super::identity::Identity;

/// The number of files in each of the two generations.
const MOST: usize = 32_768;

/// A file that was set up, and the log that it had then.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetUpFile {
    pub(super) file: Identity,
    pub(super) log: Option<Identity>,
    /// Another process took its log away, and with it perhaps the changes of `setup`.
    pub(super) lost_log: bool,
}

pub(super) struct SetUpFiles {
    hashes: RandomState,
    generations: Mutex<Generations>,
}

/// When the young generation is full, it becomes the old one, and the old one is forgotten.
#[derive(Default)]
struct Generations {
    young: HashMap<u64, SetUpFile, RandomState>,
    old: HashMap<u64, SetUpFile, RandomState>,
}

impl SetUpFiles {
    pub(super) fn new() -> Self {
        SetUpFiles {
            hashes: RandomState::default(),
            generations: Mutex::default(),
        }
    }

    /// The file that was last set up at `path`.
    pub(super) fn at(&self, path: &Path) -> Option<SetUpFile> {
        let key = self.key(path);
        let mut generations = self.generations.lock();
        if let Some(found) = generations.young.get(&key) {
            return Some(*found);
        }
        let found = generations.old.remove(&key)?;
        generations.insert(key, found);
        Some(found)
    }

    pub(super) fn remember(&self, path: &Path, file: SetUpFile) {
        let key = self.key(path);
        self.generations.lock().insert(key, file);
    }

    pub(super) fn forget(&self, path: &Path) {
        let key = self.key(path);
        let mut generations = self.generations.lock();
        generations.young.remove(&key);
        generations.old.remove(&key);
    }

    fn key(&self, path: &Path) -> u64 {
        use std::hash::BuildHasher;
        self.hashes.hash_one(path.as_os_str().as_encoded_bytes())
    }
}

impl Generations {
    fn insert(&mut self, key: u64, file: SetUpFile) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, file);
    }
}
