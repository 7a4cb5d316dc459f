//! Hands: a few threads that do what may block, started when there is work and ended when there is none.
//! They know no pool.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

pub(crate) struct Hands {
    /// What the threads are called.
    name: &'static str,
    /// Threads at most.
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    threads: usize,
    /// Threads that wait for work, those included that were called and are about to take some.
    idle: usize,
}

impl Hands {
    pub(crate) fn new(name: &'static str, most: usize) -> Arc<Self> {
        Arc::new(Hands {
            name,
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Lets a thread do `task`, after those that came before. If no thread can be started, and none is
    /// there, the caller does it: late is better than never.
    pub(crate) fn take(self: &Arc<Self>, task: Task) {
        let mut state = self.state.lock();
        state.tasks.push_back(task);
        self.changed.notify_one();
        if state.tasks.len() <= state.idle || state.threads == self.most {
            return;
        }
        state.threads += 1;
        drop(state);
        let hands = Arc::clone(self);
        let started = thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || hands.work());
        if started.is_err() {
            self.stand_in();
        }
    }

    /// What a thread does. A task may not panic.
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                drop(state);
                task();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let waited = self.changed.wait_for(&mut state, IDLE);
            state.idle -= 1;
            if waited.timed_out() && state.tasks.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    fn stand_in(&self) {
        let mut state = self.state.lock();
        state.threads -= 1;
        while state.threads == 0
            && let Some(task) = state.tasks.pop_front()
        {
            drop(state);
            task();
            state = self.state.lock();
        }
    }
}
