//! OpenFiles: which files have open connections, and how many descriptors SQLite holds on them. An opening that would exceed
//! the ceiling waits.
//! It opens nothing.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::core::backend::Patience;

/// The files that a pool has open.
///
/// While another connection of the process has a lock on a database file, SQLite does not close a descriptor
/// of that file: it keeps the descriptor for the next connection to the same file. So a file costs as many
/// descriptors as it ever had connections at once since it was last unused, and a `-wal` for each open
/// connection.
pub(super) struct OpenFiles<K, V> {
    /// What a connection costs in addition.
    per_connection: usize,
    /// The largest number of descriptors.
    most: usize,
    state: Mutex<State<K, V>>,
    /// Descriptors of closed connections that SQLite keeps. Written under the lock, read without it.
    kept: AtomicUsize,
    /// How many callers wait for room. Written under the lock, read without it.
    waiting: AtomicUsize,
    /// Notified when descriptors have been closed, and when a value has been made.
    changed: Condvar,
}

struct State<K, V> {
    files: HashMap<K, OpenFile<V>>,
    /// What all files cost, plus reservations.
    used: usize,
}

/// A file that is open.
struct OpenFile<V> {
    connections: usize,
    /// Descriptors of the database: those of connections, and those that SQLite keeps.
    databases: usize,
    /// `None`: it is being made.
    value: Option<V>,
}

/// There was no room before the deadline.
#[derive(Debug)]
pub(super) struct NoRoom;

/// Descriptors for another purpose than a connection. Dropping it releases them.
pub(super) struct Reserved<'a, K: Eq + Hash, V>(&'a OpenFiles<K, V>, usize);

/// The descriptor of the index, which all connections to a file share.
const INDEX: usize = 1;

impl<K: Eq + Hash, V> OpenFiles<K, V> {
    /// For connections that cost `per_connection` descriptors besides that of the database; all together at
    /// most `most`.
    pub(super) fn new(per_connection: usize, most: usize) -> Self {
        OpenFiles {
            per_connection,
            most,
            state: Mutex::new(State {
                files: HashMap::new(),
                used: 0,
            }),
            kept: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            changed: Condvar::new(),
        }
    }

    /// Notes that a connection to the file is about to be opened. Waits for room as `patience` says. `value`
    /// makes the value of a file that is not open yet; that may take a while, and is done without the lock.
    pub(super) fn opening<E: From<NoRoom>>(
        &self,
        key: K,
        patience: &Patience<'_>,
        value: impl FnOnce() -> Result<V, E>,
    ) -> Result<(), E>
    where
        K: Clone,
    {
        let mut waiting = None;
        let mut state = self.state.lock();
        let descriptors = loop {
            let more = match state.files.get(&key) {
                Some(OpenFile { value: None, .. }) => {
                    self.changed.wait(&mut state);
                    continue;
                }
                Some(file) if file.connections < file.databases => self.per_connection,
                Some(_) => 1 + self.per_connection,
                None => INDEX + 1 + self.per_connection,
            };
            if state.used + more > self.most {
                self.wait_for_room(&mut state, patience, &mut waiting)?;
                continue;
            }
            state.used += more;
            let Some(file) = state.files.get_mut(&key) else {
                break more;
            };
            file.connections += 1;
            if file.connections > file.databases {
                file.databases = file.connections;
            } else {
                self.kept.fetch_sub(1, Relaxed);
            }
            return Ok(());
        };
        let first = OpenFile {
            connections: 1,
            databases: 1,
            value: None,
        };
        state.files.insert(key.clone(), first);
        let made = MutexGuard::unlocked(&mut state, value);
        let made = made.map(|value| {
            if let Some(file) = state.files.get_mut(&key) {
                file.value = Some(value);
            }
        });
        if made.is_err() {
            state.files.remove(&key);
            state.used -= descriptors;
        }
        self.changed.notify_all();
        made
    }

    /// Notes that a connection to the file was closed.
    pub(super) fn closed<Q: ?Sized + Eq + Hash>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let mut state = self.state.lock();
        let Some(file) = state.files.get_mut(key) else {
            return;
        };
        file.connections -= 1;
        let mut less = self.per_connection;
        self.kept.fetch_add(1, Relaxed);
        if file.connections == 0 {
            self.kept.fetch_sub(file.databases, Relaxed);
            less += INDEX + file.databases;
            // Its value is dropped before another thread can open the file.
            state.files.remove(key);
        }
        state.used -= less;
        self.changed.notify_all();
    }

    /// Reserves descriptors for another purpose. Waits for room as `patience` says.
    pub(super) fn reserve(
        &self,
        descriptors: usize,
        patience: &Patience<'_>,
    ) -> Result<Reserved<'_, K, V>, NoRoom> {
        let mut waiting = None;
        let mut state = self.state.lock();
        while state.used + descriptors > self.most {
            self.wait_for_room(&mut state, patience, &mut waiting)?;
        }
        state.used += descriptors;
        Ok(Reserved(self, descriptors))
    }

    /// Waits until a connection may have been closed. The first call only announces the wait: then the pool
    /// closes idle connections that it had left open because there was no need.
    fn wait_for_room<'a>(
        &'a self,
        state: &mut MutexGuard<'_, State<K, V>>,
        patience: &Patience<'_>,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<(), NoRoom> {
        if waiting.is_none() {
            *waiting = Some(Waiting::new(&self.waiting));
            MutexGuard::unlocked(state, || patience.make_room.make_room());
            return Ok(());
        }
        match self
            .changed
            .wait_until(state, patience.deadline)
            .timed_out()
        {
            true => Err(NoRoom),
            false => Ok(()),
        }
    }

    /// Whether a caller waits for room.
    pub(super) fn is_short(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Whether SQLite keeps descriptors of closed connections to the file.
    pub(super) fn keeps_closed<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        if self.kept.load(Relaxed) == 0 {
            return false;
        }
        let state = self.state.lock();
        let file = state.files.get(key);
        file.is_some_and(|file| file.connections < file.databases)
    }

    pub(super) fn is_open<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.state.lock().files.contains_key(key)
    }

    /// Whether several connections to the file are open.
    pub(super) fn are_several<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        let state = self.state.lock();
        let file = state.files.get(key);
        file.is_some_and(|file| file.connections > 1)
    }

    /// Waits until no connection to the file is open, but no longer than until `deadline`. Returns whether
    /// that is so.
    pub(super) fn wait_until_closed<Q: ?Sized + Eq + Hash>(
        &self,
        key: &Q,
        deadline: Instant,
    ) -> bool
    where
        K: Borrow<Q>,
    {
        let mut state = self.state.lock();
        while state.files.contains_key(key) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return !state.files.contains_key(key);
            }
        }
        true
    }

    /// How many files are open.
    pub(super) fn len(&self) -> usize {
        self.state.lock().files.len()
    }

    /// How many descriptors they have, as far as the pool knows without asking the system.
    pub(super) fn descriptors(&self) -> usize {
        self.state.lock().used
    }

    /// Whether several files together have nine tenths of all descriptors.
    pub(super) fn is_nearly_full(&self) -> bool {
        let state = self.state.lock();
        state.files.len() > 1 && state.used * 10 >= self.most * 9
    }

    /// The files that are open.
    pub(super) fn lock(&self) -> Files<'_, K, V> {
        Files(self.state.lock())
    }
}

/// Counts a caller that waits for room.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The open files. While this exists, no other thread opens or closes one.
pub(super) struct Files<'a, K, V>(MutexGuard<'a, State<K, V>>);

impl<K: Eq + Hash, V> Files<'_, K, V> {
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.files.keys()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let files = self.0.files.values_mut();
        files.filter_map(|file| file.value.as_mut())
    }

    pub(super) fn get_mut<Q: ?Sized + Eq + Hash>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.files.get_mut(key)?.value.as_mut()
    }
}

impl<K: Eq + Hash, V> Drop for Reserved<'_, K, V> {
    fn drop(&mut self) {
        self.0.state.lock().used -= self.1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    impl From<NoRoom> for String {
        fn from(_: NoRoom) -> String {
            "no room".to_owned()
        }
    }

    const NOT_AT_ALL: Duration = Duration::ZERO;

    fn patience(time: Duration) -> Patience<'static> {
        Patience {
            deadline: Instant::now() + time,
            make_room: &(),
        }
    }

    fn opens(files: &OpenFiles<u8, ()>, key: u8) -> bool {
        let opening = files.opening(key, &patience(NOT_AT_ALL), || Ok::<_, String>(()));
        opening.is_ok()
    }

    #[test]
    fn descriptors_of_closed_connections_count_until_the_last_is_closed() {
        // As many as three connections to one file need.
        let files = OpenFiles::new(1, 7);
        assert!((0..3).all(|_| opens(&files, 1)));
        assert!(!opens(&files, 1));
        files.closed(&1);
        files.closed(&1);
        assert!(files.keeps_closed(&1));
        // One file needs its index, a -wal and three databases; another file would need three more.
        assert!(!opens(&files, 2));
        assert!(opens(&files, 1));
        files.closed(&1);
        files.closed(&1);
        assert!(opens(&files, 2) && opens(&files, 3));
        assert!(!opens(&files, 4));
    }

    /// To claim a file may take as long as another pool takes to give it up.
    #[test]
    fn others_do_not_wait_while_a_value_is_made() {
        let files = OpenFiles::new(1, 7);
        let (begin, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<Result<(), String>>();
        let files = &files;
        std::thread::scope(|scope| {
            let slow = move || {
                begin.send(()).unwrap();
                ended.recv().unwrap()
            };
            let first = scope.spawn(move || files.opening(1, &patience(NOT_AT_ALL), slow));
            begun.recv().unwrap();
            assert!(files.is_open(&1) && !files.keeps_closed(&1));
            assert!(opens(files, 2));
            // Another that opens the same file waits for its value, or makes it, if it could not be made.
            let second = scope.spawn(move || opens(files, 1));
            end.send(Err("claimed".to_owned())).unwrap();
            assert_eq!(first.join().unwrap(), Err("claimed".to_owned()));
            assert!(second.join().unwrap());
        });
        assert_eq!((files.len(), files.descriptors()), (2, 6));
    }

    #[test]
    fn who_waits_for_room_gets_it_when_there_is_some() {
        let files = OpenFiles::new(1, 3);
        assert!(opens(&files, 1));
        let soon = patience(Duration::from_secs(30));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| files.opening(2, &soon, || Ok::<_, String>(())));
            files.closed(&1);
            assert!(waiting.join().unwrap().is_ok());
        });
        assert!(files.reserve(1, &patience(NOT_AT_ALL)).is_err());
        files.closed(&2);
        let reserved = files.reserve(1, &patience(NOT_AT_ALL));
        assert!(reserved.is_ok() && !opens(&files, 1));
        drop(reserved);
        assert!(opens(&files, 1));
    }
}
