//! WorkerPool: a few threads for tasks that may block. They start when there is work and end when there is none.
//! They know no pool. A task that panics costs no thread.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

#[cfg(feature = "tokio")]
use event_listener::{Event, EventListener};
use parking_lot::{Condvar, Mutex};

use super::oneshot::Oneshot;
use super::unwind::quietly;
#[cfg(feature = "tokio")]
use super::virtual_time::Threads;

pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(5);

pub(crate) struct WorkerPool {
    /// The name of the threads.
    name: &'static str,
    /// The largest number of threads.
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Notified of each task, for tasks of a runtime whose clock is paused.
    #[cfg(feature = "tokio")]
    submitted: Event,
}

#[derive(Default)]
struct State {
    /// Each task with its turn number.
    tasks: VecDeque<(u64, Task)>,
    next_turn: u64,
    threads: usize,
    /// Threads that wait for work, including those that were notified and are about to take a task.
    idle: usize,
}

impl WorkerPool {
    pub(crate) fn new(name: &'static str, most: usize) -> Arc<Self> {
        Arc::new(WorkerPool {
            name,
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
            #[cfg(feature = "tokio")]
            submitted: Event::new(),
        })
    }

    /// Lets a thread do `task`, after earlier tasks.
    ///
    /// # Errors
    /// If no thread can be started and none exists. The task is returned.
    pub(crate) fn submit(self: &Arc<Self>, task: Task) -> Result<(), (Task, io::Error)> {
        self.push(task)?;
        #[cfg(feature = "tokio")]
        self.submitted.notify(usize::MAX);
        Ok(())
    }

    fn push(self: &Arc<Self>, task: Task) -> Result<(), (Task, io::Error)> {
        let mut state = self.state.lock();
        let turn = state.next_turn;
        state.next_turn += 1;
        state.tasks.push_back((turn, task));
        self.changed.notify_one();
        if state.tasks.len() <= state.idle || state.threads == self.most {
            return Ok(());
        }
        // Under the lock, so that every counted thread exists. Threads are started rarely.
        let workers = Arc::clone(self);
        let started = thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || workers.work());
        let Err(error) = started else {
            state.threads += 1;
            return Ok(());
        };
        if state.threads > 0 {
            return Ok(());
        }
        let place = state.tasks.iter().position(|(other, _)| *other == turn);
        match place.and_then(|place| state.tasks.remove(place)) {
            Some((_, task)) => Err((task, error)),
            None => Ok(()),
        }
    }

    /// Does `work` on a thread of this pool; or on the caller's thread, if no thread can be started, so that
    /// it is done at all.
    pub(crate) fn submit_or_run(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) {
        if let Err((task, _)) = self.submit(Box::new(work)) {
            run(task);
        }
    }

    /// Does `work` on a thread of this pool. If it panics, the panic continues in the thread that awaits. Dropping the
    /// future does not stop the work; that thread then drops the result.
    ///
    /// # Errors
    /// If no thread can be started. Then `work` is dropped.
    pub(crate) fn hand_over<T, F>(
        self: &Arc<Self>,
        work: F,
    ) -> Result<impl Future<Output = T> + Send + use<T, F>, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let answer = Arc::new(Oneshot::new());
        let theirs = Arc::clone(&answer);
        let task = move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            theirs.answer(outcome);
        };
        self.submit(Box::new(task)).map_err(|(_, error)| error)?;
        let answer = answer.received();
        Ok(async move {
            match answer.await {
                Ok(done) => done,
                Err(panic) => resume_unwind(panic),
            }
        })
    }

    /// Polls a future on the pool's threads each time it is woken. It occupies no thread while it waits.
    pub(crate) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        let workers = Arc::clone(self);
        let schedule = move |runnable: async_task::Runnable| {
            workers.submit_or_run(move || _ = runnable.run());
        };
        let (runnable, task) = async_task::spawn(future, schedule);
        runnable.schedule();
        task.detach();
    }

    /// How many tasks wait, if all threads that may exist are at work; otherwise zero.
    pub(crate) fn backlog(&self) -> usize {
        let state = self.state.lock();
        match state.threads == self.most && state.idle == 0 {
            true => state.tasks.len(),
            false => 0,
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some((_, task)) = state.tasks.pop_front() {
                drop(state);
                run(task);
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
}

#[cfg(feature = "tokio")]
impl Threads for WorkerPool {
    fn listen(&self) -> EventListener {
        self.submitted.listen()
    }

    fn is_at_work(&self) -> bool {
        let state = self.state.lock();
        !state.tasks.is_empty() || state.idle < state.threads
    }
}

fn run(task: Task) {
    _ = quietly(task);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn workers() -> Arc<WorkerPool> {
        WorkerPool::new("test", 1)
    }

    #[test]
    fn the_result_comes_back_and_so_does_a_panic() {
        let workers = workers();
        let six = workers.hand_over(|| 6 * 7).unwrap();
        assert_eq!(smol::block_on(six), 42);
        let panicking = workers.hand_over(|| panic!("on purpose")).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| smol::block_on::<()>(panicking)));
        assert_eq!(
            panic.unwrap_err().downcast_ref::<&str>(),
            Some(&"on purpose")
        );
        // The one thread is still there.
        let one = workers.hand_over(|| 1).unwrap();
        assert_eq!(smol::block_on(one), 1);
    }

    #[test]
    fn a_dropped_future_leaves_its_result_to_the_thread() {
        let workers = workers();
        let (finish, wait) = mpsc::channel::<()>();
        let result = Arc::new(());
        let held = Arc::clone(&result);
        let mut work = Box::pin(
            workers
                .hand_over(move || {
                    let _ = wait.recv();
                    held
                })
                .unwrap(),
        );
        assert!(smol::block_on(smol::future::poll_once(&mut work)).is_none());
        drop(work);
        finish.send(()).unwrap();
        while Arc::strong_count(&result) > 1 {
            thread::yield_now();
        }
    }
}
