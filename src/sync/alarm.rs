//! Alarm: wakes a task at a time. One thread serves all alarms of the process.
//! It knows no runtime.
//!
//! Almost every alarm is dropped long before its time: it is the deadline of a wait that ends. So setting one wakes the
//! thread only if no other rings before, and dropping one never does. futures-timer, which was here before, wakes its
//! thread both times: a quarter of the processor time of a program with 40 % awaited writes and 60 % reads
//! (`examples/tower-sessions-store`, its mix).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::origin::Origin;
use super::unwind::wake;

/// Wakes the task that polls it, at its deadline.
pub(crate) struct Alarm {
    deadline: Instant,
    set: Option<(Arc<Clock>, Key)>,
}

/// Two alarms may have one deadline.
type Key = (Instant, u64);

impl Alarm {
    pub(crate) fn at(deadline: Instant) -> Self {
        Alarm {
            deadline,
            set: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        match &self.set {
            Some((clock, key)) => clock.renew(*key, cx.waker()),
            None => {
                let clock = Clock::of_this_process();
                let key = clock.set(self.deadline, cx.waker());
                self.set = Some((clock, key));
            }
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some((clock, key)) = &self.set {
            clock.remove(*key);
        }
    }
}

struct Clock {
    state: Mutex<State>,
    changed: Condvar,
    origin: Origin,
}

#[derive(Default)]
struct State {
    alarms: BTreeMap<Key, Waker>,
    last: u64,
    thread: Running,
}

#[derive(Default, Clone, Copy)]
enum Running {
    /// There is no thread.
    #[default]
    No,
    /// It looks at the alarms before it sleeps.
    Awake,
    /// Until then, or until it is woken.
    Asleep(Option<Instant>),
}

impl Clock {
    /// A fork has the clock, but not its thread, and perhaps a lock that no thread gives back.
    fn of_this_process() -> Arc<Clock> {
        static CLOCK: LazyLock<Mutex<Arc<Clock>>> = LazyLock::new(|| Mutex::new(Clock::new()));
        let mut clock = CLOCK.lock();
        if clock.origin.is_elsewhere() {
            *clock = Clock::new();
        }
        Arc::clone(&clock)
    }

    fn new() -> Arc<Clock> {
        Arc::new(Clock {
            state: Mutex::default(),
            changed: Condvar::new(),
            origin: Origin::here(),
        })
    }

    fn set(self: &Arc<Self>, deadline: Instant, waker: &Waker) -> Key {
        // Foreign code, so not under the lock.
        let waker = waker.clone();
        let mut state = self.state.lock();
        state.last += 1;
        let key = (deadline, state.last);
        state.alarms.insert(key, waker);
        match state.thread {
            Running::Asleep(Some(until)) if until <= deadline => {}
            Running::Awake => {}
            Running::Asleep(_) => {
                state.thread = Running::Awake;
                self.changed.notify_one();
            }
            // If none can be started now, the next alarm tries again.
            Running::No if self.start().is_ok() => state.thread = Running::Awake,
            Running::No => {}
        }
        key
    }

    /// Makes an alarm wake this one, if it has not rung.
    fn renew(&self, key: Key, waker: &Waker) {
        let waker = waker.clone();
        let mut state = self.state.lock();
        let old = match state.alarms.get_mut(&key) {
            Some(known) => std::mem::replace(known, waker),
            None => waker,
        };
        drop(state);
        drop(old);
    }

    fn remove(&self, key: Key) {
        if self.origin.is_elsewhere() {
            return;
        }
        let removed = self.state.lock().alarms.remove(&key);
        // It may be the last that keeps a task alive.
        drop(removed);
    }

    fn start(self: &Arc<Self>) -> io::Result<()> {
        let clock = Arc::clone(self);
        let thread = thread::Builder::new().name("leasepool-alarm".to_owned());
        thread.spawn(move || clock.run()).map(drop)
    }

    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            state.thread = Running::Awake;
            let now = Instant::now();
            match state.alarms.first_key_value() {
                Some((&(deadline, _), _)) if deadline <= now => {
                    let rings = state.alarms.pop_first();
                    drop(state);
                    if let Some((_, waker)) = rings {
                        wake(waker);
                    }
                    state = self.state.lock();
                }
                Some((&(deadline, _), _)) => {
                    state.thread = Running::Asleep(Some(deadline));
                    self.changed.wait_until(&mut state, deadline);
                }
                None => {
                    state.thread = Running::Asleep(None);
                    self.changed.wait(&mut state);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    struct Rung(AtomicBool, thread::Thread);

    impl Wake for Rung {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
            self.1.unpark();
        }
    }

    fn set(after: Duration) -> (Alarm, Arc<Rung>) {
        let rung = Arc::new(Rung(AtomicBool::new(false), thread::current()));
        let mut alarm = Alarm::at(Instant::now() + after);
        let waker = Waker::from(Arc::clone(&rung));
        assert!(alarm.poll(&Context::from_waker(&waker)).is_pending());
        (alarm, rung)
    }

    #[test]
    fn an_earlier_alarm_rings_before_a_later_one_and_a_dropped_one_never() {
        let (_hours, later) = set(Duration::from_secs(3_600));
        // This thread may have to wait for its processor until the alarm has rung.
        let never = loop {
            let (dropped, never) = set(Duration::from_millis(20));
            drop(dropped);
            if !never.0.load(SeqCst) {
                break never;
            }
        };
        let begun = Instant::now();
        let (mut alarm, rung) = set(Duration::from_millis(40));
        while !rung.0.load(SeqCst) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it never rings");
            thread::park_timeout(Duration::from_millis(100));
        }
        assert!(begun.elapsed() >= Duration::from_millis(40));
        assert!(alarm.poll(&Context::from_waker(Waker::noop())).is_ready());
        assert!(!never.0.load(SeqCst) && !later.0.load(SeqCst));
        assert_eq!(Arc::strong_count(&never), 1, "its waker is dropped with it");
    }

    #[test]
    fn a_waker_that_panics_keeps_no_other_alarm_from_ringing() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("as the test wants it");
            }
        }
        let mut first = Alarm::at(Instant::now() + Duration::from_millis(5));
        let waker = Waker::from(Arc::new(Panics));
        let _ = first.poll(&Context::from_waker(&waker));
        let (_second, rung) = set(Duration::from_millis(10));
        let begun = Instant::now();
        while !rung.0.load(SeqCst) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it never rings");
            thread::park_timeout(Duration::from_millis(100));
        }
    }
}
