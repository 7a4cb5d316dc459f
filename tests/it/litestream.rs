//! A real Litestream beside a pool: what it has copied restores equal, and the pool costs it no copy of the whole
//! database. Without the program this is not tested, unless `LEASEPOOL_LITESTREAM` is set: then it must be there, on
//! the `PATH` or where `LEASEPOOL_LITESTREAM_BIN` says.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use leasepool::Pool;
use leasepool::rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::*;

in_both_modes!(
    what_litestream_restores_is_equal_and_the_pool_costs_it_no_snapshot,
    without_the_option_it_copies_all_again,
);

/// Rows that are there from the beginning: 4 MB.
const BASE: usize = 200;
const ROW: i64 = 20_000;
/// Shorter than one copy of the base, and longer than all that is written at a time besides.
const WHOLE: u64 = 3_000_000;

fn program() -> Option<PathBuf> {
    let program = std::env::var_os("LEASEPOOL_LITESTREAM_BIN").unwrap_or("litestream".into());
    let tried = Command::new(&program).arg("version").output();
    match tried {
        Ok(output) if output.status.success() => Some(program.into()),
        tried if std::env::var_os("LEASEPOOL_LITESTREAM").is_some() => {
            panic!("{}: {tried:?}", program.display())
        }
        _ => {
            eprintln!("no litestream: replication was not tested");
            None
        }
    }
}

struct Litestream {
    process: Child,
}

impl Litestream {
    fn start(program: &Path, fixture: &Fixture) -> Litestream {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(fixture.in_folder("litestream.log"))
            .unwrap();
        let process = Command::new(program)
            .args(["replicate", "-config"])
            .arg(fixture.in_folder("litestream.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Litestream { process }
    }

    /// It copies what is left first.
    fn stop(mut self) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).unwrap();
        let mut ended = None;
        eventually("litestream ends", || {
            ended = self.process.try_wait().unwrap();
            ended.is_some()
        });
        assert!(ended.unwrap().success());
    }
}

impl Drop for Litestream {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configure(fixture: &Fixture) {
    let path = fixture.path.display();
    let database = match fixture.mode {
        Mode::Shared => format!("path: {path}"),
        Mode::PerAgent => format!("dir: {path}\n    pattern: \"*.db\"\n    watch: true"),
    };
    let replica = fixture.in_folder("replica");
    let config = format!(
        "logging:\n  level: debug\ndbs:\n  - {database}\n    monitor-interval: 50ms\n    replica:\n      \
         type: file\n      path: {}\n      sync-interval: 50ms\n",
        replica.display()
    );
    std::fs::write(fixture.in_folder("litestream.yml"), config).unwrap();
}

fn replica(fixture: &Fixture, agent: &str) -> PathBuf {
    let replica = fixture.in_folder("replica");
    match fixture.mode {
        Mode::Shared => replica,
        Mode::PerAgent => replica.join(format!("{agent}.db")),
    }
}

/// What Litestream has copied of the agent's database, one file for each time, by length.
fn copies(fixture: &Fixture, agent: &str) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(replica(fixture, agent).join("ltx/0")) else {
        return Vec::new();
    };
    let finished = entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "ltx"));
    finished
        .map(|entry| entry.metadata().map_or(0, |file| file.len()))
        .collect()
}

/// How often it has copied all of it: once at the beginning.
fn whole_copies(fixture: &Fixture, agent: &str) -> usize {
    let copies = copies(fixture, agent);
    copies.into_iter().filter(|&bytes| bytes > WHOLE).count()
}

fn add(conn: &Connection) -> leasepool::rusqlite::Result<usize> {
    conn.execute("INSERT INTO t VALUES (randomblob(?1))", [ROW])
}

/// Half of the rows through the queue, half by leases.
fn write(pool: &Pool, agent: &str, rows: usize) {
    for _ in 0..rows / 2 {
        pool.write(agent, |tx| add(tx)).unwrap();
        add(&pool.lease(agent).unwrap()).unwrap();
    }
}

fn rows(file: &Path) -> Vec<(i64, Vec<u8>)> {
    let conn = Connection::open(file).unwrap();
    let fault: String = conn
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(fault, "ok");
    let mut rows = conn.prepare("SELECT rowid, x FROM t ORDER BY 1").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// Litestream runs, is down while the pool writes on, and runs again. Returns how often it has copied all of an
/// agent's database, for each.
fn replicate(program: &Path, fixture: &Fixture, external: bool) -> Vec<usize> {
    configure(fixture);
    let builder = fixture.builder(4).wal_size(64 << 10);
    let builder = match external {
        true => builder.external_checkpoints(Some(1 << 30)),
        false => builder,
    };
    let pool = builder
        .setup(|conn| {
            conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)")?;
            let transaction = conn.transaction()?;
            if count(&transaction) == 0 {
                for _ in 0..BASE {
                    add(&transaction)?;
                }
            }
            transaction.commit()
        })
        .build()
        .unwrap();
    let agents = fixture.mode.either(&["a"][..], &["a", "b"]);
    for agent in agents {
        drop(pool.lease(agent).unwrap());
    }
    let litestream = Litestream::start(program, fixture);
    let copied = |agent: &str, n: usize| {
        eventually("litestream copies", || copies(fixture, agent).len() > n);
    };
    for agent in agents {
        copied(agent, 0);
        write(&pool, agent, 40);
        copied(agent, 1);
        // It runs the checkpoints.
        eventually("the database grows", || {
            let file = std::fs::metadata(fixture.file(agent)).unwrap();
            file.len() > WHOLE
        });
    }
    litestream.stop();
    for agent in agents {
        write(&pool, agent, 20);
        // Where it is the agent's own, its connection is closed.
        pool.evict(agent);
    }
    fixture.mode.assert_open(&pool, 0, pool.stats().open);
    for agent in agents {
        write(&pool, agent, 20);
    }
    let before: Vec<usize> = agents.iter().map(|a| copies(fixture, a).len()).collect();
    let litestream = Litestream::start(program, fixture);
    for (agent, before) in agents.iter().zip(before) {
        copied(agent, before);
        write(&pool, agent, 20);
    }
    if fixture.mode == Mode::PerAgent {
        // A file that is made while it runs.
        write(&pool, "later", 20);
        copied("later", 0);
    }
    pool.close().unwrap();
    litestream.stop();
    if external {
        let stats = pool.stats();
        assert_eq!((stats.checkpoints, stats.emergency_checkpoints), (0, 0));
    }
    let later = fixture.mode.either(&[][..], &["later"]);
    for agent in agents.iter().chain(later) {
        let restored = fixture.in_folder(&format!("{agent}.restored"));
        let output = Command::new(program)
            .args(["restore", "-o"])
            .arg(&restored)
            .arg(format!("file://{}", replica(fixture, agent).display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let (source, restored) = (rows(&fixture.file(agent)), rows(&restored));
        assert!(source == restored, "{} rows", restored.len());
        assert!(source.len() >= BASE + 20);
    }
    agents
        .iter()
        .map(|agent| whole_copies(fixture, agent))
        .collect()
}

fn what_litestream_restores_is_equal_and_the_pool_costs_it_no_snapshot(mode: Mode) {
    let Some(program) = program() else { return };
    let fixture = mode.fixture();
    let whole = replicate(&program, &fixture, true);
    let log = fixture.in_folder("litestream.log");
    let log = || std::fs::read_to_string(&log).unwrap();
    assert_eq!(whole, mode.either(vec![1], vec![1, 1]), "{}", log());
}

/// What the option is for.
fn without_the_option_it_copies_all_again(mode: Mode) {
    let Some(program) = program() else { return };
    let fixture = mode.fixture();
    let whole = replicate(&program, &fixture, false);
    assert!(whole.iter().all(|&whole| whole > 1), "{whole:?}");
}

/// Litestream has the file open all the time. An agent moves nevertheless, and its copies bring it back where all else is
/// lost.
#[test]
fn an_agent_moves_beside_litestream_and_is_restored_from_its_copies() {
    use leasepool::{Database, Owner};

    let Some(program) = program() else { return };
    let fixture = Mode::PerAgent.fixture();
    configure(&fixture);
    let here = Database::per_agent(&fixture.path).owner({
        let moved = fixture.in_folder("moved");
        move |agent| match agent == "a" && moved.exists() {
            true => Owner::Elsewhere("other".to_owned()),
            false => Owner::Here,
        }
    });
    let build = |database| {
        let builder = Pool::builder(database).external_checkpoints(None);
        let setup = "CREATE TABLE IF NOT EXISTS t (x)";
        builder.setup(move |conn| conn.execute_batch(setup)).build()
    };
    let pool = build(here).unwrap();
    write(&pool, "a", 20);
    let litestream = Litestream::start(&program, &fixture);
    eventually("litestream copies", || !copies(&fixture, "a").is_empty());
    write(&pool, "a", 20);
    pool.agent("a")
        .within(LONG)
        .hand_over(|file| {
            std::fs::copy(file, fixture.in_folder("copy"))?;
            std::fs::write(fixture.in_folder("moved"), "")
        })
        .unwrap();
    assert!(!fixture.file("a").exists());
    let rows = rows(&fixture.in_folder("copy"));
    assert_eq!(rows.len(), 40);
    // An agent that is removed while Litestream has it open.
    write(&pool, "b", 20);
    eventually("litestream copies", || !copies(&fixture, "b").is_empty());
    assert!(pool.agent("b").within(LONG).remove().unwrap());
    write(&pool, "c", 20);
    eventually("litestream copies", || !copies(&fixture, "c").is_empty());
    pool.close().unwrap();
    litestream.stop();
    // The machine is lost; another one has the copies.
    let replica = fixture.in_folder("replica");
    let database =
        Database::per_agent(fixture.in_folder("other")).on_missing(move |agent, path| {
            let restored = Command::new(&program)
                .args(["restore", "-if-replica-exists", "-o"])
                .arg(path)
                .arg(format!("file://{}/{agent}.db", replica.display()))
                .output()?;
            match restored.status.success() {
                true => Ok(()),
                false => Err(std::io::Error::other(format!("{restored:?}"))),
            }
        });
    let pool = build(database).unwrap();
    assert_eq!(count(&pool.lease("c").unwrap()), 20);
    assert_eq!(count(&pool.lease("never seen").unwrap()), 0);
    pool.close().unwrap();
}
