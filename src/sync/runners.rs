//! Runners: threads for many short jobs, each of which a task awaits.
//! They know no pool. A job that panics costs no thread.
//!
//! What makes a short job expensive is that threads sleep and are woken for it, twice: the one that does it, and the
//! one that awaits it. So a thread that is awake takes one job after the other. When a few jobs are done or none is
//! left, it wakes one of the tasks that wait; and that task wakes the others, since an executor wakes its own tasks
//! without a switch of threads.
//!
//! As many threads are *active* as do useful work at the same time: one for each processor, if jobs compute. A job may take long, or
//! wait. So while jobs are queued, one more thread is the *lookout*: if a whole tick passes in which none of them was
//! taken, all active threads are at work on long jobs. Then as many others may be active, and the lookout calls the first
//! of them. It also wakes tasks whose jobs are done, if the thread that did them is at work on a long one, or the task
//! that was to wake them does not run. A surplus thread stays active while its own jobs take long.
//!
//! Jobs that wait for each other are done faster one after the other. So if many had to, one thread is active for a while,
//! and the lookout calls others only for a job that has been queued for some ticks. A job that has what others wait for is
//! done before one of them, and the lookout helps it after one tick.
//!
//! Threads have caches: the connection that a thread had last, what that has read, and the processor's. So the oldest
//! threads do the jobs, and the youngest leave first.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "tokio")]
use event_listener::{Event, EventListener};

use super::conflicts::Conflicts;
use super::job_queue::{JobQueue, Ticket};
use super::prim::{Guard, Mutex};
use super::resting::{self, Resting, Seat, Which};
use super::unwind::{drop_quietly, wake};
#[cfg(feature = "tokio")]
use super::virtual_time::Threads;

/// What a thread does for a task.
pub(crate) trait Job: Send + Sync {
    /// Does it, on this thread. Returns what wakes the task.
    fn run(self: Arc<Self>) -> Option<Waker>;

    /// Whether other jobs may have to wait for what it has, so that it is done before one of them.
    fn is_first(&self) -> bool {
        false
    }
}

/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(5);
/// How long a queued job waits, in which none was taken, before another thread becomes active.
const TICK: Duration = Duration::from_micros(500);
/// For how many ticks a job is queued before another thread becomes active, while jobs that wait for each other are done one
/// after the other.
const ALONE_TICKS: u32 = 8;
/// So many tasks are woken together at most,
const TOGETHER: usize = 32;
/// and so long at most does the first of them wait for the others.
const PATIENCE: Duration = Duration::from_micros(100);

pub(crate) struct Runners<J: Job + ?Sized> {
    /// The name of the threads.
    name: &'static str,
    /// How many threads are active while no job takes long.
    useful: usize,
    /// The largest number of active threads.
    most: usize,
    state: Mutex<State<J>>,
    /// Whether a task that was woken is to wake others.
    has_done: AtomicBool,
    /// Notified of each job, for tasks of a runtime whose clock is paused.
    #[cfg(feature = "tokio")]
    submitted: Event,
}

struct State<J: Job + ?Sized> {
    queue: JobQueue<J>,
    threads: usize,
    /// How many were ever started.
    started: u64,
    active: usize,
    short: Short,
    conflicts: Conflicts,
    has_lookout: bool,
    resting: Resting<Role>,
    done: Done,
}

/// The active threads that are not at work on long jobs, the oldest first. The lookout empties the list when it finds that no
/// job is taken. A thread is in it again when it ends a job.
#[derive(Default)]
struct Short(Vec<u64>);

/// The tasks whose jobs are done and that are not awake yet.
#[derive(Default)]
struct Done {
    wakers: Vec<Waker>,
    /// When the first of them was done, if none was woken since.
    since: Option<Instant>,
    /// When a task was first woken that is to wake the others, unless they are awake.
    told: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Role {
    Active,
    Lookout,
}

type Locked<'a, J> = Guard<'a, State<J>>;

impl<J: Job + ?Sized + 'static> Runners<J> {
    /// `most`: how many jobs are done at the same time at most.
    pub(crate) fn new(name: &'static str, most: usize) -> Self {
        let processors = thread::available_parallelism().map_or(2, usize::from);
        Runners {
            name,
            useful: processors.min(most),
            most,
            state: Mutex::new(State {
                queue: JobQueue::default(),
                threads: 0,
                started: 0,
                active: 0,
                short: Short::default(),
                conflicts: Conflicts::default(),
                has_lookout: false,
                resting: Resting::default(),
                done: Done::default(),
            }),
            has_done: AtomicBool::new(false),
            #[cfg(feature = "tokio")]
            submitted: Event::new(),
        }
    }

    /// The same, with so many threads active while no job takes long.
    pub(crate) fn with_useful(mut self, threads: usize) -> Self {
        self.useful = threads.min(self.most);
        self
    }

    /// Lets a thread do a job, after earlier jobs of its kind. Returns its ticket.
    ///
    /// # Errors
    /// If no thread can be started and none exists.
    pub(crate) fn submit(self: &Arc<Self>, job: Arc<J>) -> io::Result<Ticket> {
        let ticket = self.queue(job)?;
        #[cfg(feature = "tokio")]
        self.submitted.notify(usize::MAX);
        Ok(ticket)
    }

    /// A job had to wait for another one.
    pub(crate) fn conflicted(&self) {
        let state = &mut *self.state.lock();
        state.conflicts.note(state.queue.taken(), Instant::now());
    }

    fn queue(self: &Arc<Self>, job: Arc<J>) -> io::Result<Ticket> {
        let is_first = job.is_first();
        let mut state = self.state.lock();
        let useful = match is_first {
            true => self.useful,
            false => state.useful(self.useful, Instant::now),
        };
        if state.lacks_threads(useful) && state.active < self.most {
            let summoned = self.summon(&mut state, Role::Active);
            if let Err(error) = summoned
                && state.threads == 0
            {
                drop(state);
                drop_quietly(job);
                return Err(error);
            }
        } else if !state.has_lookout {
            // Without one, it works as well, a little slower.
            let _ = self.summon(&mut state, Role::Lookout);
        }
        Ok(state.queue.push(job, is_first))
    }

    /// Takes a job back. Returns whether no thread had taken it.
    pub(crate) fn withdraw(&self, ticket: Ticket) -> bool {
        let job = self.state.lock().queue.remove(ticket);
        // Dropped without the lock: it may hold the user's values.
        job.is_some()
    }

    /// The jobs that no thread has taken yet: those that are done first, then the others, in the order of their calls.
    pub(crate) fn queued(&self) -> Vec<Arc<J>> {
        self.state.lock().queue.jobs().cloned().collect()
    }

    /// Makes one more thread active, or the lookout.
    fn summon(self: &Arc<Self>, state: &mut State<J>, role: Role) -> io::Result<()> {
        let which = match role {
            Role::Active => Which::Oldest,
            Role::Lookout => Which::Youngest,
        };
        let number = match state.resting.call(which, role) {
            Some(number) => number,
            None => {
                // Under the lock, so that every counted thread exists. Threads are started rarely.
                let runners = Arc::clone(self);
                let number = state.started;
                let thread = thread::Builder::new().name(self.name.to_owned());
                thread.spawn(move || runners.live(number, role))?;
                state.started += 1;
                state.threads += 1;
                number
            }
        };
        match role {
            Role::Active => {
                state.active += 1;
                state.short.insert(number);
            }
            Role::Lookout => state.has_lookout = true,
        }
        Ok(())
    }

    /// The life of a thread.
    fn live(self: &Arc<Self>, number: u64, role: Role) {
        let (seat, mut role) = (Seat::new(number), Some(role));
        let mut state = self.state.lock();
        while let Some(current) = role {
            (state, role) = match current {
                Role::Active => self.work(state, number),
                Role::Lookout => self.look_out(state, number),
            };
            if role.is_none() {
                (state, role) = resting::rest(state, |state| &mut state.resting, &seat, IDLE);
            }
        }
        state.threads -= 1;
    }

    /// Does one job after the other.
    fn work<'a>(&'a self, mut state: Locked<'a, J>, number: u64) -> (Locked<'a, J>, Option<Role>) {
        let mut spare = Vec::new();
        let mut now = Instant::now();
        while let Some(job) = state.queue.take_next() {
            drop(state);
            let begun = now;
            let done = catch_unwind(AssertUnwindSafe(|| job.run()));
            now = Instant::now();
            state = self.state.lock();
            match done {
                Ok(Some(waker)) => state.done.push(waker, now),
                Ok(None) => {}
                Err(panic) => {
                    drop(state);
                    drop_quietly(panic);
                    state = self.state.lock();
                }
            }
            state.short.insert(number);
            let was_short = now.saturating_duration_since(begun) < TICK;
            let useful = state.useful(self.useful, || now);
            let is_surplus = was_short && state.is_surplus(number, useful);
            if is_surplus
                || state.queue.is_empty()
                || !state.has_lookout
                || state.done.wakers.len() >= TOGETHER
                || state.done.is_late(now)
            {
                (state, spare) = self.wake(state, spare, now);
            }
            if is_surplus && state.is_surplus(number, useful) {
                break;
            }
        }
        state.short.remove(number);
        state.active -= 1;
        (state, None)
    }

    /// Wakes the tasks whose jobs are done: one of them, which wakes the others, if the lookout sees to it that
    /// they are woken.
    fn wake<'a>(
        &'a self,
        mut state: Locked<'a, J>,
        spare: Vec<Waker>,
        now: Instant,
    ) -> (Locked<'a, J>, Vec<Waker>) {
        if !state.has_lookout || state.done.wakers.len() < 2 {
            return self.wake_all(state, spare);
        }
        let first = state.done.wakers.pop();
        state.done.since = None;
        state.done.told.get_or_insert(now);
        self.has_done.store(true, Relaxed);
        drop(state);
        if let Some(first) = first {
            wake(first);
        }
        (self.state.lock(), spare)
    }

    fn wake_all<'a>(
        &'a self,
        mut state: Locked<'a, J>,
        spare: Vec<Waker>,
    ) -> (Locked<'a, J>, Vec<Waker>) {
        let mut wakers = self.take_done(&mut state, spare);
        drop(state);
        wakers.drain(..).for_each(wake);
        (self.state.lock(), wakers)
    }

    /// The tasks to wake.
    fn take_done(&self, state: &mut State<J>, spare: Vec<Waker>) -> Vec<Waker> {
        let none = Done {
            wakers: spare,
            ..Done::default()
        };
        self.has_done.store(false, Relaxed);
        std::mem::replace(&mut state.done, none).wakers
    }

    /// Called by a task that was woken. An executor wakes its own tasks for less than another thread does.
    pub(crate) fn wake_others(&self) {
        if self.has_done.load(Relaxed) {
            let wakers = self.take_done(&mut self.state.lock(), Vec::new());
            wakers.into_iter().for_each(wake);
        }
    }

    /// Looks now and then whether queued jobs are taken, and whether tasks are woken whose jobs are done.
    fn look_out<'a>(
        self: &'a Arc<Self>,
        mut state: Locked<'a, J>,
        number: u64,
    ) -> (Locked<'a, J>, Option<Role>) {
        // For how many ticks some job has been queued with a number below this.
        let (mut ticks, mut next) = (0, state.queue.next_number());
        loop {
            let taken = state.queue.taken();
            // Where all threads are active, there is no other to call for help.
            let nap = if state.active < self.most {
                TICK
            } else {
                TICK * 10
            };
            drop(state);
            thread::sleep(nap);
            state = self.state.lock();
            if state.done.is_stuck(Instant::now()) {
                (state, _) = self.wake_all(state, Vec::new());
            }
            let Some(ticket) = state.queue.next() else {
                if state.done.wakers.is_empty() {
                    state.has_lookout = false;
                    return (state, None);
                }
                continue;
            };
            if ticket.is_before(next) {
                ticks += 1;
            } else {
                (ticks, next) = (0, state.queue.next_number());
            }
            let is_late = match !ticket.is_first() && state.conflicts.are_many(Instant::now) {
                true => ticks >= ALONE_TICKS,
                false => state.queue.taken() == taken,
            };
            if is_late && state.active < self.most {
                (ticks, next) = (0, state.queue.next_number());
                // All that are active are at work on long jobs.
                state.short = Short::default();
                if self.summon(&mut state, Role::Active).is_err() {
                    // Without a lookout, each thread wakes the tasks whose jobs it has done.
                    state.has_lookout = false;
                    state.active += 1;
                    state.short.insert(number);
                    (state, _) = self.wake_all(state, Vec::new());
                    return (state, Some(Role::Active));
                }
            }
        }
    }
}

#[cfg(feature = "tokio")]
impl<J: Job + ?Sized> Threads for Runners<J> {
    fn listen(&self) -> EventListener {
        self.submitted.listen()
    }

    fn is_at_work(&self) -> bool {
        let state = self.state.lock();
        state.active > 0 || !state.queue.is_empty() || !state.done.wakers.is_empty()
    }
}

impl<J: Job + ?Sized> State<J> {
    /// How many threads are useful now, of `most`.
    fn useful(&mut self, most: usize, now: impl FnOnce() -> Instant) -> usize {
        match self.conflicts.are_many(now) {
            true => 1,
            false => most,
        }
    }

    /// Whether fewer threads than that do jobs that are not long.
    fn lacks_threads(&self, useful: usize) -> bool {
        self.short.0.len() < useful
    }

    /// Whether as many older threads as are useful do jobs that are not long, and another thread looks whether they go on.
    fn is_surplus(&self, number: u64, useful: usize) -> bool {
        (self.has_lookout || self.queue.is_empty()) && self.short.older_than(number) >= useful
    }
}

impl Short {
    fn older_than(&self, number: u64) -> usize {
        self.0.partition_point(|&other| other < number)
    }

    fn insert(&mut self, number: u64) {
        let at = self.older_than(number);
        if self.0.get(at) != Some(&number) {
            self.0.insert(at, number);
        }
    }

    fn remove(&mut self, number: u64) {
        self.0.retain(|&other| other != number);
    }
}

impl Done {
    fn push(&mut self, waker: Waker, now: Instant) {
        self.wakers.push(waker);
        self.since.get_or_insert(now);
    }

    /// Whether the first of them waits for the others too long.
    fn is_late(&self, now: Instant) -> bool {
        is_past(self.since, now, PATIENCE)
    }

    /// Whether the threads and tasks that were to wake them do not come to it.
    fn is_stuck(&self, now: Instant) -> bool {
        is_past(self.since, now, TICK) || is_past(self.told, now, TICK)
    }
}

fn is_past(since: Option<Instant>, now: Instant, patience: Duration) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::Wake;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Does what it is given, and then has this task woken.
    struct Task {
        work: Box<dyn Fn() + Send + Sync>,
        waker: Option<Waker>,
        first: bool,
    }

    impl Job for Task {
        fn run(self: Arc<Self>) -> Option<Waker> {
            (self.work)();
            self.waker.clone()
        }

        fn is_first(&self) -> bool {
            self.first
        }
    }

    struct Woken(Mutex<Sender<()>>);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let _ = self.0.lock().send(());
        }
    }

    fn woken() -> (Waker, Receiver<()>) {
        let (sender, receiver) = channel();
        (Waker::from(Arc::new(Woken(Mutex::new(sender)))), receiver)
    }

    fn task(waker: &Waker, work: impl Fn() + Send + Sync + 'static) -> Arc<Task> {
        Arc::new(Task {
            work: Box::new(work),
            waker: Some(waker.clone()),
            first: false,
        })
    }

    type Note<T> = Arc<Mutex<Sender<T>>>;

    fn notes<T>() -> (Note<T>, Receiver<T>) {
        let (note, noted) = channel();
        (Arc::new(Mutex::new(note)), noted)
    }

    /// What a job does that only notes its name.
    fn noting<T: Copy + Send + Sync + 'static>(
        note: &Note<T>,
        name: T,
    ) -> impl Fn() + Send + Sync + 'static {
        let note = Arc::clone(note);
        move || _ = note.lock().send(name)
    }

    /// A job that goes on until the sender is dropped, and says when it begins.
    fn gate(waker: &Waker) -> (Arc<Task>, Receiver<()>, Sender<()>) {
        let ((tell, begun), (release, wait)) = (channel(), channel());
        let (tell, wait) = (Mutex::new(tell), Mutex::new(wait));
        let gate = task(waker, move || {
            let _ = tell.lock().send(());
            let _ = wait.lock().recv();
        });
        (gate, begun, release)
    }

    /// Runners of one thread, which is at work until the sender is dropped.
    fn occupied(waker: &Waker) -> (Arc<Runners<Task>>, Sender<()>) {
        let runners = Arc::new(Runners::new("test", 1));
        let (first, begun, release) = gate(waker);
        runners.submit(first).unwrap();
        begun.recv_timeout(LONG).unwrap();
        (runners, release)
    }

    fn until_at_rest(runners: &Runners<Task>) {
        let begun = Instant::now();
        while runners.state.lock().active > 0 {
            assert!(begun.elapsed() < LONG, "they never rest");
            thread::yield_now();
        }
    }

    #[test]
    fn a_task_is_woken_though_its_thread_goes_on_with_long_work() {
        let (waker, done) = woken();
        let (runners, release) = occupied(&waker);
        // Both are queued behind it.
        let (short, woken_short) = woken();
        runners.submit(task(&short, || ())).unwrap();
        let (long, _begun, long_release) = gate(&waker);
        runners.submit(long).unwrap();
        drop(release);
        woken_short.recv_timeout(LONG).unwrap();
        drop(long_release);
        (0..2).for_each(|_| done.recv_timeout(LONG).unwrap());
    }

    #[test]
    fn all_threads_become_active_for_jobs_that_wait_and_only_a_few_stay_for_short_ones() {
        let (waker, done) = woken();
        let runners = Arc::new(Runners::new("test", 6));
        let gates: Vec<_> = (0..6).map(|_| gate(&waker)).collect();
        let mut open = Vec::new();
        for (job, begun, release) in gates {
            runners.submit(job).unwrap();
            open.push((begun, release));
        }
        for (begun, _) in &open {
            begun.recv_timeout(LONG).unwrap();
        }
        assert_eq!(runners.state.lock().active, 6);
        // What is queued now is taken when one of them ends, and not before.
        let (short, woken_short) = woken();
        for _ in 0..1_000 {
            runners.submit(task(&short, || ())).unwrap();
        }
        thread::sleep(TICK * 4);
        assert_eq!(runners.queued().len(), 1_000);
        assert!(woken_short.try_recv().is_err());
        drop(open);
        (0..6).for_each(|_| done.recv_timeout(LONG).unwrap());
        (0..1_000).for_each(|_| woken_short.recv_timeout(LONG).unwrap());
        until_at_rest(&runners);
        let state = runners.state.lock();
        assert!(state.threads <= 7, "{}", state.threads);
    }

    #[test]
    fn jobs_are_taken_in_their_order_and_not_once_they_are_withdrawn() {
        let (waker, done) = woken();
        let (runners, release) = occupied(&waker);
        let (note, noted) = notes();
        let tickets: Vec<_> = (0..10)
            .map(|i| runners.submit(task(&waker, noting(&note, i))).unwrap())
            .collect();
        assert!(runners.withdraw(tickets[3]) && !runners.withdraw(tickets[3]));
        drop(release);
        (0..10).for_each(|_| done.recv_timeout(LONG).unwrap());
        let order: Vec<i32> = noted.try_iter().collect();
        assert_eq!(order, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
        assert!(!runners.withdraw(tickets[0]));
    }

    #[test]
    fn a_job_that_others_wait_for_is_done_before_them_in_turns() {
        let (waker, done) = woken();
        let (runners, release) = occupied(&waker);
        let (note, noted) = notes();
        let tickets = [false, true, false, true, true].map(|first| {
            let job = Task {
                work: Box::new(noting(&note, first)),
                waker: Some(waker.clone()),
                first,
            };
            runners.submit(Arc::new(job)).unwrap()
        });
        let last = tickets[4];
        assert!(runners.withdraw(last) && !runners.withdraw(last));
        drop(release);
        (0..5).for_each(|_| done.recv_timeout(LONG).unwrap());
        let order: Vec<bool> = noted.try_iter().collect();
        assert_eq!(order, [true, false, true, false]);
    }

    #[test]
    fn a_job_that_panics_costs_no_thread() {
        let (waker, done) = woken();
        let runners = Arc::new(Runners::new("test", 1));
        for _ in 0..3 {
            runners
                .submit(task(&waker, || panic!("on purpose")))
                .unwrap();
        }
        runners.submit(task(&waker, || ())).unwrap();
        done.recv_timeout(LONG).unwrap();
        assert_eq!(runners.state.lock().queue.taken(), 4);
    }

    /// One tick is enough to see that the active threads are at work on long jobs.
    #[test]
    fn short_jobs_beside_long_ones_need_no_tick_each() {
        const JOBS: u32 = 200;
        let runners = Arc::new(Runners::new("test", 1_000));
        let (waker, done) = woken();
        let gates: Vec<_> = (0..runners.useful).map(|_| gate(&waker)).collect();
        let mut open = Vec::new();
        for (job, begun, release) in gates {
            runners.submit(job).unwrap();
            begun.recv_timeout(LONG).unwrap();
            open.push(release);
        }
        let (short, woken_short) = woken();
        let one = || {
            runners.submit(task(&short, || ())).unwrap();
            woken_short.recv_timeout(LONG).unwrap();
        };
        // A machine that is busy may be slow: one of ten times is enough.
        let in_time = (0..10).any(|_| {
            let begun = Instant::now();
            (0..JOBS).for_each(|_| one());
            begun.elapsed() < TICK * JOBS / 2
        });
        assert!(in_time);
        drop(open);
        (0..runners.useful).for_each(|_| done.recv_timeout(LONG).unwrap());
        until_at_rest(&runners);
        assert!(runners.state.lock().short.0.is_empty());
    }

    #[test]
    fn the_youngest_threads_are_surplus() {
        let runners = Runners::<Task>::new("test", 6);
        let mut state = runners.state.lock();
        state.short = Short(vec![1, 4, 7]);
        let surplus = |number| [1, 2, 3].map(|useful| state.is_surplus(number, useful));
        assert_eq!(surplus(1), [false; 3]);
        assert_eq!(surplus(4), [true, false, false]);
        assert_eq!(surplus(7), [true, true, false]);
    }

    #[test]
    fn while_jobs_wait_for_each_other_others_begin_later() {
        let (waker, done) = woken();
        let runners = Arc::new(Runners::new("test", 6));
        let begun = Instant::now();
        (0..4).for_each(|_| runners.conflicted());
        let (job, first, release) = gate(&waker);
        runners.submit(job).unwrap();
        first.recv_timeout(LONG).unwrap();
        let (job, second, other) = gate(&waker);
        let asked = Instant::now();
        runners.submit(job).unwrap();
        second.recv_timeout(LONG).unwrap();
        let over = begun.elapsed() >= Duration::from_millis(100);
        assert!(over || asked.elapsed() >= TICK * ALONE_TICKS);
        drop((release, other));
        (0..2).for_each(|_| done.recv_timeout(LONG).unwrap());
    }

    /// Many callers, short and long jobs, and each is done once.
    #[test]
    fn every_job_is_done_and_every_task_woken() {
        let runners = Arc::new(Runners::new("test", 4));
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let runners = Arc::clone(&runners);
                thread::spawn(move || {
                    let (waker, done) = woken();
                    for i in 0..500_u64 {
                        let nap = (i + caller).is_multiple_of(50);
                        let work = move || {
                            if nap {
                                thread::sleep(TICK * 2);
                            }
                        };
                        runners.submit(task(&waker, work)).unwrap();
                        if i % 3 == 0 {
                            done.recv_timeout(LONG).unwrap();
                        }
                    }
                    (0..333).for_each(|_| done.recv_timeout(LONG).unwrap());
                })
            })
            .collect();
        for caller in callers {
            caller.join().unwrap();
        }
        assert_eq!(runners.state.lock().queue.taken(), 4_000);
    }
}
