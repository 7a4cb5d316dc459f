//! Which files were set up by this process, and which file each was: as many as fit into a fixed memory.
//! What is forgotten is set up once more.

use std::collections::HashMap;
use std::path::Path;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use super::identity::Identity;

/// In each of the two generations.
const MOST: usize = 32_768;

/// A file that was set up, and the log that it had then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) file: Identity,
    pub(super) log: Option<Identity>,
    /// Its log was taken away, and with it perhaps what `setup` did.
    pub(super) lost_log: bool,
}

pub(super) struct SetUpFiles {
    hashes: RandomState,
    generations: Mutex<Generations>,
}

/// When the young are too many, they become the old ones, and the old ones are forgotten.
#[derive(Default)]
struct Generations {
    young: HashMap<u64, Known, RandomState>,
    old: HashMap<u64, Known, RandomState>,
}

impl SetUpFiles {
    pub(super) fn new() -> Self {
        SetUpFiles {
            hashes: RandomState::default(),
            generations: Mutex::default(),
        }
    }

    /// The file that was set up at `path` last.
    pub(super) fn at(&self, path: &Path) -> Option<Known> {
        let key = self.key(path);
        let mut generations = self.generations.lock();
        if let Some(found) = generations.young.get(&key) {
            return Some(*found);
        }
        let found = generations.old.remove(&key)?;
        generations.insert(key, found);
        Some(found)
    }

    pub(super) fn remember(&self, path: &Path, file: Known) {
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
    fn insert(&mut self, key: u64, file: Known) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, file);
    }
}
