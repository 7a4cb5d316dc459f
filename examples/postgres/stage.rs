//! The stage: who takes the next turn, what became of it, and how many connections the server counts meanwhile.
//! It does not know where agents have their connections from.

use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use leasepool_postgres_server::Server;
use postgres::Client;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::args::Args;
use crate::popularity::Popularity;
use crate::report::{Report, with_sources};

pub(crate) type Fault = Box<dyn std::error::Error + Send + Sync>;

const SHOW_EVERY: Duration = Duration::from_millis(50);

pub(crate) struct Stage {
    act: &'static str,
    args: Args,
    url: String,
    popularity: Popularity,
    /// A client outside of all pools, which counts connections.
    watcher: Mutex<Client>,
    next: AtomicU64,
    served: AtomicU64,
    /// Turns that found the setting of another agent.
    strangers: AtomicU64,
    failure: Mutex<Option<String>>,
    over: AtomicBool,
}

impl Stage {
    /// Empties the table, and waits until the connections of the last act are gone.
    pub(crate) fn set(act: &'static str, args: &Args, server: &Server) -> Result<Arc<Self>, Fault> {
        let mut watcher = server.client();
        watcher.batch_execute(
            "DROP TABLE IF EXISTS message;
             CREATE TABLE message (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, agent text, body text);
             CREATE INDEX ON message (agent, id);
             DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
             GRANT SELECT, INSERT ON message TO app",
        )?;
        while Server::backends(&mut watcher) > 0 {}
        Ok(Arc::new(Stage {
            act,
            args: args.clone(),
            url: format!(
                "host=127.0.0.1 port={} user=app dbname=postgres",
                server.port
            ),
            popularity: Popularity::new(args.agents),
            watcher: Mutex::new(watcher),
            next: AtomicU64::new(0),
            served: AtomicU64::new(0),
            strangers: AtomicU64::new(0),
            failure: Mutex::default(),
            over: AtomicBool::new(false),
        }))
    }

    /// What agents connect with.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What a thread or a task draws its agents from.
    pub(crate) fn draws(&self, number: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.args.seed.wrapping_add(number << 32))
    }

    /// The agent of the next turn, or `None` after the last, or after one that failed.
    pub(crate) fn next(&self, draws: &mut SmallRng) -> Option<String> {
        let over = self.over.load(Relaxed) || self.next.fetch_add(1, Relaxed) >= self.args.turns;
        (!over).then(|| format!("agent-{}", self.popularity.draw(draws)))
    }

    /// What became of a turn: it found the setting of an agent or none, or it failed, and that ends the act.
    pub(crate) fn took(&self, agent: &str, found: Result<String, Fault>) {
        match found {
            Ok(found) => {
                let is_stranger = !found.is_empty() && found != agent;
                self.strangers.fetch_add(u64::from(is_stranger), Relaxed);
                self.served.fetch_add(1, Relaxed);
            }
            Err(error) => {
                lock(&self.failure).get_or_insert_with(|| with_sources(&*error));
                self.over.store(true, Relaxed);
            }
        }
    }

    /// Lets threads take all turns.
    pub(crate) fn threads<F>(&self, take: F) -> Result<Report, Fault>
    where
        F: Fn(&str) -> Result<String, Fault> + Sync,
    {
        self.watched(|| {
            thread::scope(|scope| {
                for number in 0..self.args.threads {
                    let take = &take;
                    scope.spawn(move || {
                        let mut draws = self.draws(number);
                        while let Some(agent) = self.next(&mut draws) {
                            self.took(&agent, take(&agent));
                        }
                    });
                }
            });
            Ok(())
        })
    }

    /// Counts the server's connections while `work` goes on.
    pub(crate) fn watched(
        &self,
        work: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<Report, Fault> {
        let (begun, done) = (Instant::now(), AtomicBool::new(false));
        let (worked, most) = thread::scope(|scope| {
            let watcher = scope.spawn(|| self.watch(begun, &done));
            // Also if it panics.
            let _done = Done(&done);
            let worked = work();
            drop(_done);
            (worked, watcher.join())
        });
        worked?;
        let elapsed = begun.elapsed();
        let rows = lock(&self.watcher).query_one("SELECT count(*) FROM message", &[])?;
        Ok(Report {
            act: self.act,
            turns: self.served.load(Relaxed),
            elapsed,
            most: most.map_err(|_| "the watcher panicked")??,
            strangers: self.strangers.load(Relaxed),
            rows: rows.get::<_, i64>(0).unsigned_abs(),
            failure: lock(&self.failure).take(),
            sessions: None,
            stats: None,
        })
    }

    /// Returns the largest number of connections that the server counted.
    fn watch(&self, begun: Instant, done: &AtomicBool) -> Result<u64, Fault> {
        let (mut most, mut shown) = (0, Instant::now());
        let terminal = stderr().is_terminal();
        let mut watcher = lock(&self.watcher);
        while !done.load(Relaxed) {
            let now = Server::backends(&mut watcher).unsigned_abs();
            most = most.max(now);
            if terminal && shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                self.show(begun, now, most);
            }
            // Not a moment that anything waits for: it leaves the processor to the agents.
            thread::sleep(Duration::from_millis(2));
        }
        if terminal {
            write!(stderr(), "\r\x1b[K")?;
        }
        Ok(most)
    }

    fn show(&self, begun: Instant, now: u64, most: u64) {
        const WIDTH: usize = 30;
        let (served, turns) = (self.served.load(Relaxed), self.args.turns);
        let bar = "█".repeat((served * WIDTH as u64 / turns).min(WIDTH as u64) as usize);
        let rate = served as f64 / begun.elapsed().as_secs_f64();
        // What cannot be shown is not worth an error.
        let _ = write!(
            stderr(),
            "\r\x1b[K{:<8} {bar:░<WIDTH$} {served}/{turns} turns  {rate:.0} turns/s  {now} connections, at most {most}",
            self.act
        );
    }
}

/// Says that the work is done.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
