//! What several topics need: the descriptor probe, child processes, a few SQL helpers.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use leasepool::{Builder, Database, Pool};
use tempfile::TempDir;

/// Longer than anything may take; only a failing test waits for so long.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What the agents of a pool have: one file together, or a file each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    PerAgent,
}

/// Makes two tests of each body, a function that takes the mode: `shared::NAME` and `per_agent::NAME`.
macro_rules! in_both_modes {
    ($($body:ident),* $(,)? $(; only in shared: $($only:ident),* $(,)?)?) => {
        mod shared {
            $(#[test]
            fn $body() {
                super::$body($crate::common::Mode::Shared);
            })*

            $($(#[test]
            fn $only() {
                super::$only($crate::common::Mode::Shared);
            })*)?
        }

        mod per_agent {
            $(#[test]
            fn $body() {
                super::$body($crate::common::Mode::PerAgent);
            })*
        }
    };
}
pub(crate) use in_both_modes;

impl Mode {
    pub(crate) fn fixture(self) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let name = self.either("agents.db", "agents");
        let path = folder.path().canonicalize().unwrap().join(name);
        Fixture {
            mode: self,
            folder,
            path,
        }
    }

    /// What the two modes differ in.
    pub(crate) fn either<T>(self, shared: T, per_agent: T) -> T {
        match self {
            Mode::Shared => shared,
            Mode::PerAgent => per_agent,
        }
    }

    pub(crate) fn database(self, path: &Path) -> Database {
        match self {
            Mode::Shared => Database::file(path),
            Mode::PerAgent => Database::per_agent(path),
        }
    }

    /// How many files so many agents have.
    pub(crate) fn files(self, agents: usize) -> usize {
        self.either(1, agents)
    }

    /// An agent that sees what this one writes: another, unless this one's file is its own.
    pub(crate) fn reader_of(self, agent: &str) -> &str {
        self.either("reader", agent)
    }

    /// The full name of the test that `in_both_modes` made in this module for this mode.
    pub(crate) fn test(self, module: &str, body: &str) -> String {
        let mode = self.either("shared", "per_agent");
        format!("{module}::{mode}::{body}")
    }

    /// So many connections are open: those in use, and, where others can use them, those evicted. Agents'
    /// own are closed, by maintenance if by nobody else.
    pub(crate) fn assert_open(self, pool: &Pool, used: usize, evicted: usize) {
        match self {
            Mode::Shared => assert_eq!(pool.stats().open, used + evicted),
            Mode::PerAgent => eventually("all evicted are closed", || pool.stats().open == used),
        }
    }
}

/// A fresh folder with the path of a database in it, or with that of a folder of databases.
pub(crate) struct Fixture {
    pub(crate) mode: Mode,
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Mode::Shared.fixture()
    }

    /// A builder with a table `t (x)`, and with N connections.
    pub(crate) fn builder(&self, connections: usize) -> Builder {
        Pool::builder(self.mode.database(&self.path))
            .max_connections(connections)
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
    }

    pub(crate) fn pool(&self, connections: usize) -> Pool {
        self.builder(connections).build().unwrap()
    }

    /// On all databases of the pool.
    pub(crate) fn descriptors(&self) -> Descriptors {
        match self.mode {
            Mode::Shared => Descriptors::on(&self.path),
            Mode::PerAgent => Descriptors::in_folder(&self.path),
        }
    }

    /// The database of an agent, whose id is small letters, digits, `-` and `_`.
    pub(crate) fn file(&self, agent: &str) -> PathBuf {
        match self.mode {
            Mode::Shared => self.path.clone(),
            Mode::PerAgent => self.path.join(format!("{agent}.db")),
        }
    }

    /// The length of its log; 0 if there is none.
    pub(crate) fn wal_length(&self, agent: &str) -> u64 {
        let mut name = self.file(agent).into_os_string();
        name.push("-wal");
        std::fs::metadata(name).map_or(0, |file| file.len())
    }

    /// The rows of all agents.
    pub(crate) fn count_all(&self, pool: &Pool) -> i64 {
        match self.mode {
            Mode::Shared => count(&pool.lease("counter").unwrap()),
            Mode::PerAgent => {
                let agents: Vec<String> = pool.agents().unwrap().map(Result::unwrap).collect();
                let rows = agents
                    .iter()
                    .map(|agent| count(&pool.lease(agent).unwrap()));
                rows.sum()
            }
        }
    }

    pub(crate) fn in_folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The descriptors that this process has open on a database, as the kernel tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Descriptors {
    pub(crate) db: usize,
    pub(crate) wal: usize,
    pub(crate) shm: usize,
    pub(crate) journal: usize,
    /// On any of these files after it was deleted.
    pub(crate) deleted: usize,
}

impl Descriptors {
    pub(crate) fn on(path: &Path) -> Self {
        let name = path.to_str().unwrap();
        Self::find(|target| target.strip_prefix(name))
    }

    /// On all databases in a folder.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        let folder = format!("{}/", folder.to_str().unwrap());
        Self::find(|target| {
            let name = target.strip_prefix(&folder)?;
            // The folder has nothing else in it.
            Some(name.split_once(".db").expect("a database's name").1)
        })
    }

    /// What `rest` leaves of a target is what comes after the name of a database.
    fn find(rest: impl Fn(&str) -> Option<&str>) -> Self {
        let mut found = Descriptors::default();
        for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let Ok(target) = entry.path().read_link() else {
                continue;
            };
            let Some(rest) = target.to_str().and_then(&rest) else {
                continue;
            };
            match rest {
                "" => found.db += 1,
                "-wal" => found.wal += 1,
                "-shm" => found.shm += 1,
                "-journal" => found.journal += 1,
                _ if rest.ends_with(" (deleted)") => found.deleted += 1,
                _ => {}
            }
        }
        found
    }

    pub(crate) fn all(self) -> usize {
        self.db + self.wal + self.shm + self.journal + self.deleted
    }

    pub(crate) fn max(self, other: Self) -> Self {
        Descriptors {
            db: self.db.max(other.db),
            wal: self.wal.max(other.wal),
            shm: self.shm.max(other.shm),
            journal: self.journal.max(other.journal),
            deleted: self.deleted.max(other.deleted),
        }
    }
}

/// Runs `body` in a process of its own: this test, started again. `name` is the test's full name.
pub(crate) fn in_child(name: &str, body: impl FnOnce()) {
    in_child_of_shell(":", name, body);
}

/// The same, after a command of the shell's that the process inherits something from.
pub(crate) fn in_child_of_shell(command: &str, name: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "LEASEPOOL_TEST_CHILD";
    if std::env::var(VARIABLE).is_ok_and(|child| child == name) {
        return body();
    }
    let output = Command::new("sh")
        .args(["-c", &format!("{command}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "child failed:\n{stdout}\n{stderr}");
    assert!(
        stdout.contains("1 passed"),
        "no such test: {name}\n{stdout}"
    );
}

pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

pub(crate) fn limit_descriptors(n: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = Rlimit {
        current: Some(n as u64),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Waits until `condition` holds; panics if it takes too long.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Long enough for a change of the file to be seen by the next lease: the documented 100 µs.
pub(crate) fn let_a_change_show() {
    std::thread::sleep(Duration::from_millis(1));
}

pub(crate) fn count(conn: &leasepool::rusqlite::Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

pub(crate) fn insert(conn: &leasepool::rusqlite::Connection) {
    conn.execute("INSERT INTO t VALUES (1)", []).unwrap();
}

/// All N connections can be lent at once: nothing was lost on the way here.
pub(crate) fn assert_whole(pool: &Pool) {
    let n = pool.stats().max_connections;
    let leases: Vec<_> = (0..n)
        .map(|i| {
            let agent = pool.agent(format!("whole-{i}"));
            agent.within(LONG).lease().unwrap()
        })
        .collect();
    assert!(pool.try_lease("one too many").is_err());
    drop(leases);
    let stats = pool.stats();
    assert_eq!((stats.lent, stats.waiting), (0, 0), "{stats:?}");
    assert!(stats.open <= n, "{stats:?}");
}

/// What the variable says, if it is set.
pub(crate) fn asked(variable: &str, otherwise: u32) -> u32 {
    let asked = std::env::var(variable);
    asked.map_or(otherwise, |asked| asked.parse().unwrap())
}

/// So many processes are killed.
pub(crate) fn kills() -> u64 {
    asked("LEASEPOOL_KILLS", 50).into()
}

/// Measures what this thread took, without the time that it was ready to run while another thread had its processor:
/// that is the machine's, and not the crate's.
pub(crate) struct Stopwatch {
    since: Instant,
    kept: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Stopwatch {
            kept: kept_from_running(),
            since: Instant::now(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        let elapsed = self.since.elapsed();
        elapsed.saturating_sub(kept_from_running() - self.kept)
    }
}

/// The answer of a call that takes less than `most`; of one that takes more, what it took.
pub(crate) fn within<T: Debug>(most: Duration, call: impl FnOnce() -> T) -> Result<T, String> {
    let begun = Stopwatch::start();
    let answer = call();
    let took = begun.elapsed();
    if took < most {
        Ok(answer)
    } else {
        Err(format!("{took:?}, and not {most:?}: {answer:?}"))
    }
}

/// The machine may take the processor from the threads that are to answer: one of three attempts is enough. What is
/// slow has to be slow anew in each.
pub(crate) fn in_one_of_three<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let mut late = Vec::new();
    for _ in 0..3 {
        match attempt() {
            Ok(answer) => return answer,
            Err(took) => late.push(took),
        }
    }
    panic!("{late:?}")
}

/// For how long this thread was ready to run, and another one had the processor.
fn kept_from_running() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').nth(1).and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
