//! The three acts, each played in a process of its own, which tells on stdout how it goes: a line of
//! JSON for every sample, and one for the end.

use std::collections::HashMap;
use std::io::Write;
use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::{self, Connection, TransactionBehavior};
use leasepool::{Database, Error, Pool, Stats, Synchronous};
use r2d2_sqlite::SqliteConnectionManager;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::args::{Act, Args};
use crate::popularity::Popularity;
use crate::probe::{Descriptors, limit_descriptors};
use crate::report::{Report, Sample};
use crate::transcript::{Transcript, word_of};
use crate::workload::{self, Access, Turn};

const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the pinned act waits for a connection: long enough to see that none will come.
const PINNED_WAIT: Duration = Duration::from_secs(2);
const SAMPLE_EVERY: Duration = Duration::from_millis(2);
const TELL_EVERY: Duration = Duration::from_millis(50);
/// One turn in so many searches.
const SEARCH_EVERY: u64 = 50;
/// With a file for each agent: how many of them are checked at the end. Rows are counted in all.
const CHECKED_FILES: usize = 1_000;

/// One way of giving agents access to the database.
trait Server: Sync {
    /// Takes an agent's turn. `acknowledged` is told of every row.
    fn serve(&self, turn: Turn, acknowledged: impl Fn()) -> Result<(), String>;

    /// How many agents have a connection to themselves.
    fn agents(&self) -> Option<usize>;
}

/// Every agent that was ever served keeps what it was given: a connection of its own, as servers do it
/// today, or a guard of a pool.
struct Kept<C, F> {
    give: F,
    agents: Mutex<HashMap<String, Arc<Mutex<C>>>>,
}

struct Leased(Pool);

/// Who has a connection reads and writes on it, and waits for SQLite's lock.
impl Access for &mut Connection {
    type Error = rusqlite::Error;

    fn write<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        // IMMEDIATE: a transaction that writes must not begin as one that reads.
        let transaction = self.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    fn read<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        work(self)
    }
}

/// Who has none leases one to read, and hands the pool what is to be written.
struct Lent<'a> {
    pool: &'a Pool,
    agent: &'a str,
}

impl Access for Lent<'_> {
    type Error = Error;

    fn write<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.pool.write(self.agent, move |tx| work(tx))
    }

    fn read<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let lease = self.pool.lease(self.agent)?;
        Ok(work(&lease)?)
    }
}

fn configure(conn: &mut Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
}

impl<C, F> Server for Kept<C, F>
where
    C: DerefMut<Target = Connection> + Send,
    F: Fn(&str) -> Result<C, String> + Sync,
{
    fn serve(&self, turn: Turn, acknowledged: impl Fn()) -> Result<(), String> {
        let known = lock(&self.agents).get(&turn.agent).cloned();
        let conn = match known {
            Some(conn) => conn,
            None => {
                let conn = Arc::new(Mutex::new((self.give)(&turn.agent)?));
                lock(&self.agents).insert(turn.agent.clone(), Arc::clone(&conn));
                conn
            }
        };
        let mut conn = lock(&conn);
        turn.take(&mut **conn, acknowledged)
            .map_err(|e| e.to_string())
    }

    fn agents(&self) -> Option<usize> {
        Some(lock(&self.agents).len())
    }
}

impl Server for Leased {
    fn serve(&self, turn: Turn, acknowledged: impl Fn()) -> Result<(), String> {
        let agent = turn.agent.clone();
        let access = Lent {
            pool: &self.0,
            agent: &agent,
        };
        turn.take(access, acknowledged).map_err(|e| e.to_string())
    }

    fn agents(&self) -> Option<usize> {
        None
    }
}

/// Plays one act in this process.
pub(crate) fn play(act: Act, args: &Args) -> Result<(), String> {
    let path = args.db().ok_or("no database given")?;
    let transcript = match args.transcript() {
        Some(file) => Transcript::read(file)?,
        None => Transcript::default(),
    };
    limit_descriptors(args.fd_limit())?;
    let stage = Stage::new(args, path, &transcript);
    let report = match act {
        Act::Owned if args.per_agent() => {
            std::fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))?;
            // Two threads that make one file at the same time would be in each other's way.
            let making = Mutex::new(());
            stage.perform(&Kept {
                give: |agent: &str| {
                    let _alone = lock(&making);
                    let conn = open(&path.join(agent).with_extension("db"))?;
                    workload::set_up(&conn).map_err(|e| e.to_string())?;
                    Ok(Box::new(conn))
                },
                agents: Mutex::default(),
            })
        }
        Act::Owned => {
            set_up(path)?;
            stage.perform(&Kept {
                give: |_: &str| open(path).map(Box::new),
                agents: Mutex::default(),
            })
        }
        Act::Pinned => {
            set_up(path)?;
            let pool = r2d2::Pool::builder()
                .max_size(args.connections() as u32)
                .connection_timeout(PINNED_WAIT)
                .build(SqliteConnectionManager::file(path).with_init(configure))
                .map_err(|error| format!("{}: {error}", path.display()))?;
            stage.perform(&Kept {
                give: |_: &str| {
                    let asked = Instant::now();
                    pool.get().map_err(|error| {
                        format!("{error}, after {:.1} s", asked.elapsed().as_secs_f64())
                    })
                },
                agents: Mutex::default(),
            })
        }
        Act::Leased => {
            let database = match args.per_agent() {
                true => Database::per_agent(path),
                false => Database::file(path),
            };
            let pool = Pool::builder(database)
                .max_connections(args.connections())
                .busy_timeout(BUSY_TIMEOUT)
                .lease_timeout(Duration::from_secs(60))
                .synchronous(Synchronous::Normal)
                .setup(|conn| workload::set_up(conn))
                .build()
                .map_err(|error| with_sources(&error))?;
            let ceiling = pool.fd_ceiling() as u64;
            let server = Leased(pool);
            let report = stage.perform(&server);
            let report = report.with_pool(ceiling, &server.0.stats());
            server.0.close().map_err(|error| with_sources(&error))?;
            report
        }
    };
    let report = match args.per_agent() {
        true => report.examined_all(path),
        false => report.examined(path),
    };
    tell(&Report {
        act: act.name().to_owned(),
        ..report
    });
    Ok(())
}

fn open(path: &Path) -> Result<Connection, String> {
    let mut conn = Connection::open(path).map_err(|e| e.to_string())?;
    configure(&mut conn).map_err(|e| e.to_string())?;
    Ok(conn)
}

fn set_up(path: &Path) -> Result<(), String> {
    let conn = open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    workload::set_up(&conn).map_err(|error| format!("{}: {error}", path.display()))
}

/// What all acts have in common: who asks for what, and who watches.
struct Stage<'a> {
    args: &'a Args,
    path: &'a Path,
    transcript: &'a Transcript,
    popularity: Popularity,
    started: Instant,
    next_turn: AtomicU64,
    turns: AtomicU64,
    rows: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<(String, Option<usize>)>>,
    over: AtomicBool,
}

impl<'a> Stage<'a> {
    fn new(args: &'a Args, path: &'a Path, transcript: &'a Transcript) -> Self {
        Stage {
            args,
            path,
            transcript,
            popularity: Popularity::new(args.agents()),
            started: Instant::now(),
            next_turn: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_error: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    /// Serves all turns, or as many as come before the first error.
    fn perform(&self, server: &impl Server) -> Report {
        let (peak, peak_all) = thread::scope(|scope| {
            let watcher = scope.spawn(|| self.watch());
            let threads: Vec<_> = (0..self.args.threads())
                .map(|thread| scope.spawn(move || self.serve(server, thread as u64)))
                .collect();
            for thread in threads {
                if thread.join().is_err() {
                    self.errors.fetch_add(1, Relaxed);
                }
            }
            self.over.store(true, Relaxed);
            watcher.join().unwrap_or_default()
        });
        let first_error = lock(&self.first_error).clone();
        Report {
            agents: self.args.agents(),
            turns: self.turns.load(Relaxed),
            turns_wanted: self.args.turns(),
            errors: self.errors.load(Relaxed),
            elapsed_s: self.started.elapsed().as_secs_f64(),
            fd_limit: self.args.fd_limit(),
            peak,
            peak_all,
            rows_expected: self.rows.load(Relaxed),
            error: first_error.as_ref().map(|(error, _)| error.clone()),
            agents_held: first_error.and_then(|(_, agents)| agents),
            ..Report::default()
        }
    }

    fn serve(&self, server: &impl Server, thread: u64) {
        let mut rng = SmallRng::seed_from_u64(self.args.seed().wrapping_add(thread << 32));
        while !self.over.load(Relaxed) {
            let number = self.next_turn.fetch_add(1, Relaxed);
            if number >= self.args.turns() {
                return;
            }
            let agent = format!("agent-{}", self.popularity.draw(&mut rng));
            let (message, reply) = self.transcript.draw(&mut rng);
            let search = match number.is_multiple_of(SEARCH_EVERY) {
                true => word_of(&message).map(str::to_owned),
                false => None,
            };
            let turn = Turn {
                agent,
                message,
                reply,
                search,
            };
            let served = server.serve(turn, || _ = self.rows.fetch_add(1, Relaxed));
            match served {
                Ok(()) => _ = self.turns.fetch_add(1, Relaxed),
                Err(error) => {
                    self.errors.fetch_add(1, Relaxed);
                    let agents = server.agents();
                    let error = with_errno(error);
                    lock(&self.first_error).get_or_insert((error, agents));
                    self.over.store(true, Relaxed);
                }
            }
        }
    }

    /// Samples the descriptors until it is over, and tells the stage now and then.
    fn watch(&self) -> (Descriptors, u64) {
        let mut peak = Descriptors::default();
        let mut peak_all = 0;
        let mut told = Instant::now();
        loop {
            let over = self.over.load(Relaxed);
            if let Some(now) = Descriptors::on(self.path, self.args.per_agent()) {
                peak = peak.max(now);
                peak_all = peak_all.max(now.all());
                // An act may be over before long: its first moments are told in full.
                let young = self.started.elapsed() < TELL_EVERY * 4;
                if over || young || told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    tell(&Sample {
                        at_s: self.started.elapsed().as_secs_f64(),
                        turns: self.turns.load(Relaxed),
                        descriptors: now,
                    });
                }
            }
            if over {
                return (peak, peak_all);
            }
            thread::sleep(SAMPLE_EVERY);
        }
    }
}

fn tell(what: &impl crate::report::Told) {
    let mut line = what.to_json().to_string();
    line.push('\n');
    // It fails only if no process reads the output any more.
    let _ = std::io::stdout().write_all(line.as_bytes());
}

impl Report {
    fn with_pool(self, fd_ceiling: u64, stats: &Stats) -> Report {
        Report {
            fd_ceiling: Some(fd_ceiling),
            hits: stats.hits,
            misses: stats.misses,
            reclaims: stats.reclaims,
            evictions: stats.evictions(),
            ..self
        }
    }

    /// Counts the rows back, over a connection of its own.
    fn examined(mut self, path: &Path) -> Report {
        let examined = Connection::open(path)
            .and_then(|conn| Ok((workload::count(&conn)?, workload::integrity(&conn)?)));
        match examined {
            Ok((rows, integrity)) => {
                self.rows_found = rows;
                self.integrity = integrity;
            }
            Err(error) => self.integrity = error.to_string(),
        }
        self
    }

    /// Counts the rows back in all files of a folder, and checks some of them, evenly chosen.
    fn examined_all(mut self, folder: &Path) -> Report {
        let files = databases(folder);
        let every = files.len().div_ceil(CHECKED_FILES).max(1);
        let mut checked = 0;
        self.integrity = "ok".to_owned();
        for (number, file) in files.iter().enumerate() {
            let check = number.is_multiple_of(every);
            checked += u64::from(check);
            match examine(file, check) {
                Ok((rows, integrity)) => {
                    self.rows_found += rows;
                    if integrity != "ok" {
                        self.integrity = format!("{}: {integrity}", file.display());
                    }
                }
                Err(error) => self.integrity = format!("{}: {error}", file.display()),
            }
        }
        self.files = Some(files.len() as u64);
        self.files_checked = Some(checked);
        self
    }
}

fn databases(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "db"))
        .collect()
}

fn examine(file: &Path, check: bool) -> rusqlite::Result<(u64, String)> {
    let conn = Connection::open(file)?;
    // The act that dies may have made this file and come no further.
    conn.execute_batch("PRAGMA synchronous = OFF")?;
    workload::set_up(&conn)?;
    let integrity = match check {
        true => workload::integrity(&conn)?,
        false => "ok".to_owned(),
    };
    Ok((workload::count(&conn)?, integrity))
}

/// SQLite does not say why it could not open a file. If there are not even descriptors enough for one
/// connection now, that is why; other threads that fail at the same time may just have freed some.
fn with_errno(error: String) -> String {
    let opened: Result<Vec<_>, _> = (0..3).map(|_| std::fs::File::open("/dev/null")).collect();
    match opened {
        Ok(_) => error,
        Err(why) => format!("{error}: {why}"),
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
