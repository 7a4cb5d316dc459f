//! What several topics need: the descriptor probe, child processes, a few SQL helpers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use leasepool::{Builder, Database, Pool};
use tempfile::TempDir;

/// Longer than anything may take; only a failing test waits for so long.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A fresh folder with the path of a database in it.
pub(crate) struct Fixture {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("agents.db");
        Fixture { folder, path }
    }

    /// A builder with a table `t (x)`, and with N connections.
    pub(crate) fn builder(&self, connections: usize) -> Builder {
        Pool::builder(Database::file(&self.path))
            .max_connections(connections)
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
    }

    pub(crate) fn pool(&self, connections: usize) -> Pool {
        self.builder(connections).build().unwrap()
    }

    pub(crate) fn descriptors(&self) -> Descriptors {
        Descriptors::on(&self.path)
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
        let mut found = Descriptors::default();
        for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let Ok(target) = entry.path().read_link() else {
                continue;
            };
            let Some(rest) = target.to_str().and_then(|t| t.strip_prefix(name)) else {
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
        .map(|i| pool.try_lease(format!("whole-{i}")).unwrap())
        .collect();
    assert!(pool.try_lease("one too many").is_err());
    drop(leases);
    let stats = pool.stats();
    assert_eq!((stats.lent, stats.waiting), (0, 0), "{stats:?}");
    assert!(stats.open <= n, "{stats:?}");
}
