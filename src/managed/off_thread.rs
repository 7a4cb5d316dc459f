//! OffThread: a value that is dropped on a thread of its own, because dropping it may block, or may panic in an async
//! task.

use std::ops::Deref;
use std::thread;

pub(super) struct OffThread<T: Send + 'static>(Option<T>);

impl<T: Send> OffThread<T> {
    pub(super) fn new(value: T) -> Self {
        OffThread(Some(value))
    }
}

impl<T: Send> Deref for OffThread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("only its drop takes the value"),
        }
    }
}

impl<T: Send + 'static> Drop for OffThread<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        // Without a thread, the closure drops the value here.
        let _ = thread::Builder::new()
            .name("leasepool-drop".to_owned())
            .spawn(move || drop(value));
    }
}
