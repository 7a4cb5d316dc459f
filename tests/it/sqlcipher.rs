//! SQLCipher: nothing is written in plain text, the file, the log, and a copy; and a wrong key is told.

use std::path::Path;
use std::process::Command;

use leasepool::rusqlite::{self, Connection, ErrorCode};
use leasepool::{Builder, Database, Error, Pool};

use crate::common::*;

in_both_modes!(
    nothing_is_in_plain_text,
    a_wrong_key_is_told,
    agents_change_nothing_for_the_process,
);

const SECRET: &str = "the treasure is under the third palm";
const KEY: &str = "a long passphrase";

/// Whether the file says it. Another process reads it: closing a descriptor here would drop SQLite's locks.
fn says(file: &Path, what: &str) -> bool {
    let grep = Command::new("grep")
        .args(["-a", "-q", "-F", what])
        .arg(file)
        .status()
        .unwrap();
    match grep.code() {
        Some(0) => true,
        Some(1) => false,
        _ => panic!("{grep}: {}", file.display()),
    }
}

fn with_key(builder: Builder, key: &'static str) -> Builder {
    builder.on_connect(move |conn| conn.pragma_update(None, "key", key))
}

/// The ways to give a key, or none.
fn keyed(builder: Builder, way: &str) -> Builder {
    match way {
        "on_connect" => with_key(builder, KEY),
        // In this order, too, SQLCipher has to see the key first.
        "pragma" => builder.pragma("cipher_page_size", 8192).pragma("key", KEY),
        // As it is, and not derived from a passphrase.
        "raw" => {
            let key = format!("x'{}'", "0badc0de".repeat(8));
            builder.on_connect(move |conn| conn.pragma_update(None, "key", &key))
        }
        _ => builder,
    }
}

fn nothing_is_in_plain_text(mode: Mode) {
    for way in ["on_connect", "pragma", "raw", "none"] {
        let plain = way == "none";
        let fixture = mode.fixture();
        let pool = keyed(fixture.builder(3), way).build().unwrap();
        let file = fixture.file("a");
        let wal = file.with_extension("db-wal");
        let hold = pool.lease(mode.reader_of("a")).unwrap();
        hold.execute("INSERT INTO t VALUES (?1)", [SECRET]).unwrap();
        drop(hold);
        pool.write("a", |tx| -> rusqlite::Result<usize> {
            tx.execute("INSERT INTO t VALUES (?1)", [SECRET])
        })
        .unwrap();
        let length = std::fs::metadata(&wal).unwrap().len();
        assert!(length > 0);
        let known = mode.either(length, 0);
        assert_eq!(pool.stats().wal_bytes, known, "{way}");
        assert_eq!(says(&wal, SECRET), plain, "{way}");
        if mode == Mode::PerAgent {
            let copy = fixture.in_folder("copy.db");
            pool.agent("a").backup(&copy).unwrap();
            assert_eq!(says(&copy, SECRET), plain, "{way}");
            assert_eq!(says(&copy, "SQLite format 3"), plain, "{way}");
            let copied = keyed(Pool::builder(Database::file(&copy)), way)
                .build()
                .unwrap();
            assert_eq!(count(&copied.lease("a").unwrap()), 2);
        }
        // From agent to agent, one connection goes on.
        for agent in ["b", "c"] {
            insert(&pool.lease(agent).unwrap());
        }
        pool.close().unwrap();
        assert_eq!(says(&file, SECRET), plain, "{way}");
        assert_eq!(says(&file, "SQLite format 3"), plain, "{way}");
        let again = keyed(fixture.builder(1), way).build().unwrap();
        let rows = "SELECT count(*) FROM t WHERE x = ?1";
        let found = again
            .lease("a")
            .unwrap()
            .query_row(rows, [SECRET], |row| row.get(0));
        assert_eq!(found, Ok(2));
    }
}

fn a_wrong_key_is_told(mode: Mode) {
    let fixture = mode.fixture();
    let open = |builder: Builder| -> Result<i64, Error> {
        let pool = builder.build()?;
        let lease = pool.lease("a")?;
        Ok(count(&lease))
    };
    assert_eq!(open(with_key(fixture.builder(1), KEY)).unwrap(), 0);
    for builder in [
        with_key(fixture.builder(1), "another passphrase"),
        fixture.builder(1).pragma("key", "another passphrase"),
        fixture.builder(1),
    ] {
        let error = open(builder).unwrap_err();
        let Error::Open { source, .. } = &error else {
            panic!("{error:?}");
        };
        let code = source
            .downcast_ref::<rusqlite::Error>()
            .and_then(rusqlite::Error::sqlite_error_code);
        assert_eq!(code, Some(ErrorCode::NotADatabase), "{error:?}");
        assert!(!format!("{error:?}").contains("passphrase"));
        assert_eq!(fixture.descriptors().all(), 0);
    }
    let empty = open(fixture.builder(1).pragma("key", "")).unwrap_err();
    assert!(matches!(empty, Error::Open { .. }), "{empty:?}");
    assert_eq!(open(with_key(fixture.builder(1), KEY)).unwrap(), 0);
}

fn agents_change_nothing_for_the_process(mode: Mode) {
    let fixture = mode.fixture();
    let pool = with_key(fixture.builder(1), KEY).build().unwrap();
    let log = fixture.in_folder("log");
    let profile = format!("PRAGMA cipher_profile = '{}'", log.display());
    for sql in [
        "PRAGMA cipher_default_kdf_iter = 1000",
        "PRAGMA CIPHER_DEFAULT_page_size = 8192",
        "PRAGMA cipher_memory_security = ON",
        "PRAGMA cipher_log_level = TRACE",
        &profile,
    ] {
        let error = pool.lease("a").unwrap().execute_batch(sql).unwrap_err();
        assert_eq!(
            error.sqlite_error_code(),
            Some(ErrorCode::AuthorizationForStatementDenied),
            "{sql}"
        );
    }
    for name in ["rekey", "cipher_default_kdf_iter", "cipher_profile"] {
        let built = with_key(fixture.builder(1), KEY).pragma(name, "x").build();
        assert!(matches!(built, Err(Error::Config { .. })), "{built:?}");
    }
}

/// Its pages are never written, but the key is no hindrance either.
#[test]
fn a_database_in_memory() {
    for way in ["on_connect", "pragma", "raw", "none"] {
        let builder = Pool::builder(Database::memory())
            .max_connections(2)
            .setup(|conn| conn.execute_batch("CREATE TABLE t (x)"));
        let pool = keyed(builder, way).build().unwrap();
        let lease = pool.lease("a").unwrap();
        insert(&lease);
        assert_eq!(count(&pool.lease("b").unwrap()), 1, "{way}");
    }
}

/// This is SQLCipher, although the feature `bundled` is on, too.
#[test]
fn sqlcipher_goes_before_bundled() {
    let conn = Connection::open_in_memory().unwrap();
    let version = conn.pragma_query_value(None, "cipher_version", |row| row.get::<_, String>(0));
    assert!(version.is_ok(), "{version:?}");
}
