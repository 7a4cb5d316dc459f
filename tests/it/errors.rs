//! P6: exhaustion is typed, timed and explains itself. P10: a fault in opening costs nothing.
//! P13: bad connections do not come back. P17: slow work of one agent does not block another.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Builder, Database, Error, Lease, Pool, rusqlite};

use crate::common::*;

in_both_modes! {
    exhausted_names_every_holder_and_comes_in_time,
    exhausted_counts_who_waits,
    a_file_given_as_a_folder,
    a_file_that_is_no_database,
    permissions,
    a_setup_that_fails,
    an_on_open_that_fails_later,
    no_descriptors_left,
    slow_work_of_one_agent_does_not_block_another,
    a_lease_in_doubt_can_be_discarded,
    a_full_disk,
    an_io_error,
    a_connection_in_doubt_runs_no_last_checkpoint,
}

/// The whole chain of messages.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

/// What fails at the first use of a database: the build, or, where agents have their own, the lease.
fn first_use(builder: Builder, agent: &str) -> Error {
    let used = builder.build().and_then(|pool| pool.lease(agent).map(drop));
    used.unwrap_err()
}

/// What needs no waiting is told within this.
const AT_ONCE: Duration = Duration::from_millis(100);

fn fails_at_once(mode: Mode, path: &Path, expected: &str) {
    let database = mode.either(path, path.parent().unwrap());
    let agent = path.file_stem().unwrap().to_str().unwrap();
    let error = in_one_of_three(|| {
        within(AT_ONCE, || {
            first_use(Pool::builder(mode.database(database)), agent)
        })
    });
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
    let text = chain(&error);
    assert!(text.contains(expected), "{text}");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
}

fn exhausted_names_every_holder_and_comes_in_time(mode: Mode) {
    let fixture = mode.fixture();
    let timeout = Duration::from_millis(400);
    let pool = fixture.builder(2).lease_timeout(timeout).build().unwrap();
    let (line, _first) = (line!(), pool.lease("first").unwrap());
    let _second = pool.lease("second").unwrap();
    let (start, own) = (Instant::now(), Stopwatch::start());
    let error = pool.lease("third").unwrap_err();
    let (took, own) = (start.elapsed(), own.elapsed());
    assert!(took >= timeout && own < timeout + timeout / 10, "{own:?}");
    let text = error.to_string();
    let Error::Exhausted {
        waited,
        max_connections: 2,
        waiting: 0,
        holders,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert!(waited >= timeout && waited <= took);
    let agents: Vec<_> = holders.iter().map(|holder| &*holder.agent).collect();
    assert_eq!(agents, ["first", "second"]);
    assert_eq!(holders[0].borrowed_at.file(), file!());
    assert_eq!(holders[0].borrowed_at.line(), line);
    assert!(holders[0].age >= holders[1].age && holders[1].age >= timeout);
    assert!(text.contains(&format!("{}:{line}:", file!())), "{text}");
    assert!(text.contains("\"first\""), "{text}");
}

fn exhausted_counts_who_waits(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let held = pool.lease("holder").unwrap();
    thread::scope(|scope| {
        for i in 0..3 {
            let pool = &pool;
            scope.spawn(move || drop(pool.agent(format!("{i}")).within(LONG).lease().unwrap()));
        }
        eventually("three wait", || pool.stats().waiting == 3);
        let Err(Error::Exhausted { waiting: 3, .. }) = pool.try_lease("fourth") else {
            panic!("no honest error");
        };
        drop(held);
    });
    assert_eq!(pool.stats().waiting, 0);
}

/// Agents' folder is created.
#[test]
fn a_missing_folder() {
    let fixture = Fixture::new();
    fails_at_once(
        Mode::Shared,
        &fixture.in_folder("no/such/agents.db"),
        "No such file or directory",
    );
}

/// Agents have one.
#[test]
fn a_folder_given_as_a_file() {
    let fixture = Fixture::new();
    fails_at_once(Mode::Shared, fixture.folder.path(), "the path is a folder");
}

fn a_file_given_as_a_folder(mode: Mode) {
    let fixture = mode.fixture();
    std::fs::write(fixture.in_folder("file"), "text").unwrap();
    let path = fixture.in_folder("file/agents.db");
    let error = Pool::builder(mode.database(&path)).build().unwrap_err();
    assert!(
        chain(&error).contains("ot a directory"),
        "{}",
        chain(&error)
    );
}

fn a_file_that_is_no_database(mode: Mode) {
    let fixture = mode.fixture();
    drop(fixture.pool(1));
    let file = fixture.file("a");
    std::fs::write(&file, "this is not a database, but a text. ".repeat(200)).unwrap();
    fails_at_once(mode, &file, "file is not a database");
    assert_eq!(fixture.descriptors().all(), 0);
}

/// Permissions mean nothing to root, so this runs as another user.
fn permissions(mode: Mode) {
    fn as_nobody(name: &str, body: impl FnOnce()) {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;
        if !rustix::process::geteuid().is_root() {
            return body();
        }
        // The test's own folder need not be open to others.
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let exe = folder.path().join("test");
        std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
        let output = std::process::Command::new(exe)
            .args(["--exact", name, "--nocapture"])
            .uid(65_534)
            .gid(65_534)
            .current_dir("/")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }
    as_nobody(&mode.test("errors", "permissions"), || {
        use std::os::unix::fs::PermissionsExt;
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let fixture = mode.fixture();
        drop(fixture.pool(1).lease("a").unwrap());
        let file = fixture.file("a");
        allow(&file, 0o444);
        fails_at_once(mode, &file, "the file is read-only");
        allow(&file, 0o000);
        fails_at_once(mode, &file, "unable to open database file");
        allow(&file, 0o644);
        let folder = file.parent().unwrap();
        allow(folder, 0o555);
        let new = folder.join("new.db");
        let why = mode.either("unable to open database file", "Permission denied");
        fails_at_once(mode, &new, why);
        assert!(!new.exists());
        allow(folder, 0o755);

        // The same for a pool that was built when all was well: each lease fails at once, and
        // costs nothing.
        let pool = fixture.pool(2);
        allow(&file, 0o000);
        for _ in 0..6 {
            let lease = || pool.lease("a").map(drop).unwrap_err();
            let error = in_one_of_three(|| within(AT_ONCE, lease));
            assert!(matches!(error, Error::Open { .. }), "{error:?}");
        }
        allow(&file, 0o644);
        drop(pool.lease("a").unwrap());
        assert_whole(&pool);
    });
}

fn a_setup_that_fails(mode: Mode) {
    let fixture = mode.fixture();
    let builder = || Pool::builder(mode.database(&fixture.path));
    let error = first_use(
        builder().setup(|conn| conn.execute_batch("CREATE TABLE a (x); CREATE NONSENSE")),
        "a",
    );
    assert!(matches!(error, Error::Setup { .. }), "{error:?}");
    assert!(chain(&error).contains("NONSENSE"), "{}", chain(&error));
    let error = first_use(
        builder().setup(|_| -> rusqlite::Result<()> { panic!("no schema today") }),
        "a",
    );
    assert!(
        chain(&error).ends_with("setup panicked: no schema today"),
        "{}",
        chain(&error)
    );
    // Nothing is left open or claimed.
    assert_eq!(fixture.descriptors().all(), 0);
    assert_whole(&fixture.pool(2));
}

fn an_on_open_that_fails_later(mode: Mode) {
    let fixture = mode.fixture();
    let broken = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&broken);
    let pool = fixture
        .builder(2)
        .synchronous(leasepool::Synchronous::Off)
        .on_open(move |conn| match seen.load(Relaxed) {
            true => conn.execute_batch("SELECT nonsense"),
            false => Ok(()),
        })
        .build()
        .unwrap();
    broken.store(true, Relaxed);
    let mut tries = 0;
    for _ in 0..6 {
        let mut lease = || {
            tries += 1;
            pool.lease("a").map(drop).unwrap_err()
        };
        let error = in_one_of_three(|| within(AT_ONCE, &mut lease));
        assert!(
            chain(&error).contains("no such column: nonsense"),
            "{}",
            chain(&error)
        );
    }
    let stats = pool.stats();
    assert_eq!((stats.open, stats.open_failures), (0, tries));
    assert_eq!(fixture.descriptors().all(), 0);
    broken.store(false, Relaxed);
    assert_whole(&pool);
}

/// Limits the process to the descriptors it has, and so many more. There may be gaps in their numbers.
fn leave_descriptors(spare: usize) {
    let open = |n: &usize| Path::new(&format!("/proc/self/fd/{n}")).is_symlink();
    let mut free = (0..).filter(|n| !open(n));
    limit_descriptors(free.nth(spare).unwrap());
}

fn no_descriptors_left(mode: Mode) {
    in_child(&mode.test("errors", "no_descriptors_left"), || {
        let fixture = mode.fixture();
        let pool = fixture.pool(2);
        let before = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        // A connection needs three.
        for spare in 0..3 {
            leave_descriptors(spare);
            let mut quickest = LONG;
            for _ in 0..6 {
                let start = Instant::now();
                let error = pool.lease("a").unwrap_err();
                // The agent's own file has not been set up yet: `setup` may be what needs the last.
                let in_setup = matches!(error, Error::Setup { .. }) && mode == Mode::PerAgent;
                assert!(matches!(error, Error::Open { .. }) || in_setup, "{error:?}");
                let text = chain(&error);
                assert!(text.contains("unable to open database file"), "{text}");
                quickest = quickest.min(start.elapsed());
            }
            assert!(quickest < Duration::from_millis(100), "{quickest:?}");
        }
        limit_descriptors(usize::try_from(before.unwrap()).unwrap());
        assert_whole(&pool);
    });
}

fn slow_work_of_one_agent_does_not_block_another(mode: Mode) {
    let fixture = mode.fixture();
    let slow = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&slow);
    let pool = fixture
        .builder(3)
        // A new agent's file is made: that is to take as long as the pool does, not the disk.
        .synchronous(leasepool::Synchronous::Off)
        .on_open(move |_| {
            if seen.swap(false, Relaxed) {
                thread::sleep(Duration::from_secs(2));
            }
            Ok::<_, rusqlite::Error>(())
        })
        .build()
        .unwrap();
    drop(pool.lease("warm").unwrap());
    slow.store(true, Relaxed);
    let warm = pool.lease("warm").unwrap();
    thread::scope(|scope| {
        let slow_lease = scope.spawn(|| drop(pool.lease("slow").unwrap()));
        eventually("the slow one is opening", || !slow.load(Relaxed));
        drop(warm);
        in_one_of_three(|| {
            within(AT_ONCE, || {
                drop(pool.lease("quick").unwrap());
                drop(pool.lease("warm").unwrap());
                pool.stats();
                pool.holders();
            })
        });
        assert!(!slow_lease.is_finished());
    });
}

fn a_lease_in_doubt_can_be_discarded(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let lease = pool.lease("a").unwrap();
    lease.execute_batch("CREATE TEMP TABLE mine (x)").unwrap();
    Lease::discard(lease);
    assert_eq!((pool.stats().open, pool.stats().discarded_by_lease), (0, 1));
    let lease = pool.lease("a").unwrap();
    assert!(lease.prepare("SELECT * FROM mine").is_err());
}

/// The disk fills up in the middle of a transaction: what was committed stays, the pool works on.
fn a_full_disk(mode: Mode) {
    let fixture = mode.fixture();
    // As full as a disk: SQLite says SQLITE_FULL at a page count, too.
    let pool = fixture
        .builder(2)
        .pragma("max_page_count", 50)
        .build()
        .unwrap();
    let blob = vec![1_u8; 20_000];
    let mut lease = pool.lease("a").unwrap();
    insert(&lease);
    let transaction = lease.transaction().unwrap();
    let error = loop {
        if let Err(error) = transaction.execute("INSERT INTO t VALUES (?1)", [&blob]) {
            break error;
        }
    };
    assert_eq!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DiskFull)
    );
    drop(transaction);
    drop(lease);
    for agent in ["a", "b", "c"] {
        let lease = pool.lease(agent).unwrap();
        assert_eq!(count(&lease), mode.either(1, i64::from(agent == "a")));
    }
    assert_whole(&pool);
}

/// Writes fail with EFBIG, as they do with EIO when a disk dies; then they work again.
fn an_io_error(mode: Mode) {
    // The signal that comes with it would kill the process; a shell lets its child ignore it.
    let name = mode.test("errors", "an_io_error");
    in_child_of_shell("trap '' XFSZ", &name, || {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let fixture = mode.fixture();
        let pool = fixture.pool(2);
        insert(&pool.lease("before").unwrap());
        let whole = getrlimit(Resource::Fsize);
        let small = Rlimit {
            current: Some(100_000),
            maximum: whole.maximum,
        };
        setrlimit(Resource::Fsize, small).unwrap();
        let blob = vec![1_u8; 20_000];
        let mut lease = pool.lease("a").unwrap();
        let error = loop {
            let transaction = lease.transaction().unwrap();
            let result = transaction
                .execute("INSERT INTO t VALUES (?1)", [&blob])
                .and_then(|_| transaction.commit());
            if let Err(error) = result {
                break error;
            }
        };
        assert_eq!(
            error.sqlite_error_code(),
            Some(rusqlite::ErrorCode::SystemIoFailure)
        );
        let committed = count(&lease);
        Lease::discard(lease);
        setrlimit(Resource::Fsize, whole).unwrap();
        for agent in ["a", "b", "before"] {
            let lease = pool.lease(agent).unwrap();
            let own = match agent {
                "a" => committed,
                "before" => 1,
                _ => 0,
            };
            assert_eq!(count(&lease), mode.either(committed, own));
            let integrity: String = lease
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(integrity, "ok");
        }
        insert(&pool.lease("a").unwrap());
        assert_whole(&pool);
    });
}

fn a_connection_in_doubt_runs_no_last_checkpoint(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let file = fixture.file("a").with_extension("db-wal");
    let wal = || std::fs::metadata(&file).map_or(0, |m| m.len());
    let lease = pool.lease("a").unwrap();
    insert(&lease);
    let before = wal();
    assert!(before > 0);
    Lease::discard(lease);
    assert_eq!(fixture.descriptors().all(), 0);
    assert_eq!(wal(), before);
    assert_eq!(count(&pool.lease(mode.reader_of("a")).unwrap()), 1);
    pool.close().unwrap();
    assert_eq!(wal(), 0);
}

#[test]
fn hostile_agent_ids() {
    let pool = Pool::builder(Database::memory()).build().unwrap();
    assert!(matches!(pool.lease(""), Err(Error::InvalidAgent { .. })));
    assert!(matches!(
        pool.lease("x".repeat(1025)),
        Err(Error::InvalidAgent { .. })
    ));
    for id in ["../x", "\0", "a b", "é", &"x".repeat(1024)] {
        assert_eq!(Lease::agent(&pool.lease(id).unwrap()), id);
    }
    assert!(!pool.evict(""));
}

#[cfg(feature = "tracing")]
mod overdue {
    use super::*;

    in_both_modes!(
        overdue_leases_are_reported_twice,
        slow_holds_of_async_tasks_are_told_and_counted
    );

    /// Only a lease that a task has where it runs may keep other tasks waiting.
    fn slow_holds_of_async_tasks_are_told_and_counted(mode: Mode) {
        let agent = mode.either("slow-of-shared", "slow-of-per-agent");
        // A thread may wait so long for a processor while it holds a lease, and would have a slow hold.
        let limit = Duration::from_millis(100);
        let begun = Instant::now();
        let events = tracing_events::capture(|| {
            let fixture = mode.fixture();
            let pool = fixture.builder(2).slow_hold(limit).build().unwrap();
            let hold = |time: Duration| {
                let lease = smol::block_on(pool.lease_async(agent)).unwrap();
                thread::sleep(time);
                drop(lease);
            };
            let blocking = pool.lease(agent).unwrap();
            thread::sleep(limit * 2);
            drop(blocking);
            let slow = move |_: &mut rusqlite::Connection| {
                thread::sleep(limit * 2);
                Ok(())
            };
            smol::block_on(pool.run(agent, slow)).unwrap();
            assert_eq!(pool.stats().slow_holds, 0);
            // A lease that a task hands over, and one whose connection takes long to open.
            let lease = smol::block_on(pool.lease_async(agent)).unwrap();
            let (lease, ()) =
                smol::block_on(Lease::run(lease, move |_| thread::sleep(limit * 2))).unwrap();
            drop(lease);
            assert_eq!(pool.stats().slow_holds, 0);
            let slow_to_open = move |_: &mut rusqlite::Connection| {
                thread::sleep(limit * 2);
                Ok::<_, Error>(())
            };
            let other = mode.fixture();
            let opens = other.builder(1).slow_hold(limit).on_open(slow_to_open);
            let opens = opens.build().unwrap();
            drop(smol::block_on(opens.lease_async(agent)).unwrap());
            assert_eq!(opens.stats().slow_holds, 0);
            // Also if the work had to wait for a connection.
            let held = ["x", "y"].map(|agent| pool.lease(agent).unwrap());
            let mut waiting = Box::pin(pool.run(agent, slow));
            // One look for both: between two, a thread of the pool may take it.
            while pool.waiting().first().is_none_or(|w| w.agent != agent) {
                assert!(smol::block_on(smol::future::poll_once(&mut waiting)).is_none());
            }
            drop(held);
            smol::block_on(waiting).unwrap();
            assert_eq!(pool.stats().slow_holds, 0);
            (0..3).for_each(|_| hold(limit + Duration::from_millis(1)));
            assert_eq!(pool.stats().slow_holds, 3);
        });
        let slow: Vec<_> = events
            .iter()
            .filter(|event| event.contains("slow hold") && event.contains(agent))
            .collect();
        let seconds = begun.elapsed().as_secs() as usize;
        assert!((1..=1 + seconds).contains(&slow.len()), "{events:?}");
        assert!(slow[0].starts_with("WARN slow hold"), "{slow:?}");
        assert!(slow[0].contains("errors.rs:"), "{slow:?}");
    }

    /// An overdue lease is reported once while it is held, and once when it comes back.
    fn overdue_leases_are_reported_twice(mode: Mode) {
        let agent = mode.either("late-of-shared", "late-of-per-agent");
        let events = tracing_events::capture(|| {
            let fixture = mode.fixture();
            let pool = fixture
                .builder(2)
                .overdue_after(Duration::from_millis(50))
                .build()
                .unwrap();
            let late = pool.lease(agent).unwrap();
            eventually("it is overdue", || pool.stats().overdue == 1);
            // Several more rounds of the maintenance.
            thread::sleep(Duration::from_millis(100));
            assert_eq!(pool.stats().overdue, 1);
            let asked = Instant::now();
            drop(pool.lease("in time").unwrap());
            // A machine that is busy with other things may make it late.
            let in_time = asked.elapsed() < Duration::from_millis(50);
            drop(late);
            assert!(!in_time || pool.stats().overdue == 1, "{:?}", pool.stats());
        });
        let overdue: Vec<_> = events
            .iter()
            .filter(|event| event.contains("overdue") && event.contains(agent))
            .collect();
        assert_eq!(overdue.len(), 2, "{events:?}");
        for event in &overdue {
            assert!(event.contains("errors.rs:"), "{event}");
        }
        assert!(overdue[0].starts_with("WARN lease overdue"), "{overdue:?}");
        assert!(
            overdue[1].starts_with("INFO overdue lease returned"),
            "{overdue:?}"
        );
    }
}

#[cfg(feature = "tracing")]
mod tracing_events {
    use std::fmt::{Debug, Write};
    use std::sync::{Arc, Mutex};
    use tracing::field::{Field, Visit};
    use tracing::{Event, Metadata, Subscriber, span};

    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<String>>>);

    struct Text(String, String);

    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            } else {
                write!(self.1, " {}={value:?}", field.name()).unwrap();
            }
        }
    }

    impl Subscriber for Recorder {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target().starts_with("leasepool")
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut text = Text(String::new(), String::new());
            event.record(&mut text);
            let line = format!("{} {}{}", event.metadata().level(), text.0, text.1);
            self.0.lock().unwrap().push(line);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    /// The events of the whole process while `body` runs: maintenance has a thread of its own.
    /// Other tests run in the same process, so look for your own.
    pub(crate) fn capture(body: impl FnOnce()) -> Vec<String> {
        static RECORDER: std::sync::OnceLock<Recorder> = std::sync::OnceLock::new();
        let recorder = RECORDER.get_or_init(|| {
            let recorder = Recorder::default();
            tracing::subscriber::set_global_default(recorder.clone()).unwrap();
            recorder
        });
        body();
        recorder.0.lock().unwrap().clone()
    }
}

/// D12, B10: what an error says of itself, wherever SQLite's BUSY is in it.
#[test]
fn what_may_succeed_a_moment_later_says_so() {
    let second = Some(Duration::from_secs(1));
    let told = |error: &Error| {
        (
            error.is_retryable(),
            error.http_status(),
            error.retry_after(),
        )
    };
    let busy = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
    for code in [
        rusqlite::ffi::SQLITE_BUSY,
        rusqlite::ffi::SQLITE_BUSY_SNAPSHOT,
        rusqlite::ffi::SQLITE_LOCKED,
    ] {
        assert_eq!(told(&busy(code).into()), (true, 503, second));
    }
    assert_eq!(
        told(&busy(rusqlite::ffi::SQLITE_FULL).into()),
        (false, 500, None)
    );
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let held = pool.lease("a").unwrap();
    let exhausted = pool.try_lease("b").unwrap_err();
    assert!(exhausted.is_exhausted());
    assert_eq!(told(&exhausted), (true, 503, second));
    let invalid = pool.lease("").unwrap_err();
    assert_eq!(told(&invalid), (false, 400, None));
    drop(held);
    pool.close().unwrap();
    let closed = pool.lease("a").unwrap_err();
    assert!(!closed.is_exhausted());
    assert_eq!(told(&closed), (false, 503, None));
    // Another has the file for itself, while it is opened, and while it is set up.
    let setup = |conn: &mut rusqlite::Connection| {
        conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
    };
    for (exclusive, from_setup) in [(true, false), (false, true)] {
        let fixture = Fixture::new();
        drop(fixture.pool(1));
        let other = rusqlite::Connection::open(&fixture.path).unwrap();
        if exclusive {
            let sql = "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; INSERT INTO t VALUES (1)";
            other.execute_batch(sql).unwrap();
        } else {
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
        }
        let builder = Pool::builder(Database::file(&fixture.path))
            .busy_timeout(Duration::ZERO)
            .setup(setup);
        let error = builder.build().unwrap_err();
        assert_eq!(
            matches!(error, Error::Setup { .. }),
            from_setup,
            "{error:?}"
        );
        assert_eq!(told(&error), (true, 503, second), "{error:?}");
    }
}
