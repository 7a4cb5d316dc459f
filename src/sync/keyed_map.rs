//! KeyedMap: one value for each key in use. The last user of a key removes it.
//! It does not know what the values are.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use foldhash::quality::RandomState;
use parking_lot::Mutex;

pub(crate) struct KeyedMap<T>(Arc<Map<T>>);

type Map<T> = Mutex<HashMap<Arc<str>, Weak<KeyedEntry<T>>, RandomState>>;

/// A value in use.
pub(crate) struct KeyedEntry<T> {
    value: T,
    key: Arc<str>,
    map: Weak<Map<T>>,
}

impl<T> KeyedMap<T> {
    pub(crate) fn new() -> Self {
        KeyedMap(Arc::default())
    }

    /// The value of `key`: the one in use, or a new one.
    pub(crate) fn get(&self, key: &str, make: impl FnOnce() -> T) -> Arc<KeyedEntry<T>> {
        let mut map = self.0.lock();
        if let Some(entry) = map.get(key).and_then(Weak::upgrade) {
            return entry;
        }
        let key: Arc<str> = key.into();
        let entry = Arc::new(KeyedEntry {
            value: make(),
            key: Arc::clone(&key),
            map: Arc::downgrade(&self.0),
        });
        map.insert(key, Arc::downgrade(&entry));
        entry
    }

    /// All values in use.
    pub(crate) fn all(&self) -> Vec<Arc<KeyedEntry<T>>> {
        self.0.lock().values().filter_map(Weak::upgrade).collect()
    }
}

impl<T> KeyedEntry<T> {
    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }
}

impl<T> Deref for KeyedEntry<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for KeyedEntry<T> {
    fn drop(&mut self) {
        let Some(map) = self.map.upgrade() else {
            return;
        };
        let mut map = map.lock();
        // Another thread may have put a new entry in its place.
        if map
            .get(&self.key)
            .is_some_and(|entry| entry.strong_count() == 0)
        {
            map.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_with_the_last_user() {
        let map = KeyedMap::new();
        let one = map.get("a", || 1);
        assert_eq!(**map.get("a", || 2), 1);
        assert_eq!(map.all().len(), 1);
        drop(one);
        assert_eq!(map.0.lock().len(), 0);
        assert_eq!(**map.get("a", || 3), 3);
        assert_eq!(map.0.lock().len(), 0);
    }
}
