//! What the trait asks of a store, and what the pool adds: shared commits, loads beside writers, batches.
//! No HTTP here.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use leasepool::rusqlite::Connection;
use leasepool::{Database, Pool};
use leasepool_tower_sessions_store::LeasepoolStore;
use serde_json::json;
use support::{HeldUp, begin, expired, in_time, pool, rows, session, store};
use time::OffsetDateTime;
use tower_sessions::session::Id;
use tower_sessions::session_store::{Error, ExpiredDeletion, SessionStore};
use tower_sessions_rusqlite_store::RusqliteStore;

#[tokio::test]
async fn a_session_is_loaded_as_it_was_created() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&pool(&folder.path().join("sessions.db"))).await;
    let mut record = session("ada");
    let nested = json!({"list": [1, -2.5, null, true], "text": "\u{0}ünï"});
    record.data.insert("nested".into(), nested);
    let asked = record.clone();
    store.create(&mut record).await.unwrap();
    assert_eq!(record, asked, "a free id is kept");
    assert_eq!(store.load(&record.id).await.unwrap(), Some(asked));
    assert_eq!(store.load(&Id::default()).await.unwrap(), None);
}

#[tokio::test]
async fn create_never_overwrites_a_session_of_the_same_id() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&pool(&folder.path().join("sessions.db"))).await;
    let mut first = session("first");
    store.create(&mut first).await.unwrap();
    let mut second = session("second");
    second.id = first.id;
    store.create(&mut second).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(store.load(&first.id).await.unwrap(), Some(first));
    assert_eq!(store.load(&second.id).await.unwrap(), Some(second));
}

/// They are in one transaction, where each must look at its own count of changed rows.
#[tokio::test]
async fn creates_of_one_id_in_one_group_make_as_many_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let id = Id::default();
    let mut records: Vec<_> = (0..16).map(|i| session(&i.to_string())).collect();
    records.iter_mut().for_each(|record| record.id = id);
    let held_up = HeldUp::new(&pool).await;
    let mut creates = Vec::new();
    for record in &mut records {
        creates.push(begin(store.create(record)).await);
    }
    held_up.end().await;
    for created in in_time(join_all(creates)).await {
        created.unwrap();
    }
    let ids: HashSet<_> = records.iter().map(|record| record.id).collect();
    assert_eq!(ids.len(), 16);
    assert!(ids.contains(&id), "the first gets the id");
    assert_eq!(rows(&pool), 16);
    for record in records {
        assert_eq!(store.load(&record.id).await.unwrap(), Some(record));
    }
}

#[tokio::test]
async fn save_replaces_a_session_and_makes_one_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let mut record = session("before");
    store.save(&record).await.unwrap();
    assert_eq!(store.load(&record.id).await.unwrap(), Some(record.clone()));
    record.data.insert("name".into(), json!("after"));
    record.expiry_date += time::Duration::hours(1);
    store.save(&record).await.unwrap();
    assert_eq!(rows(&pool), 1);
    assert_eq!(store.load(&record.id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn delete_ends_one_session_and_a_missing_one_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&pool(&folder.path().join("sessions.db"))).await;
    let (mut ends, mut stays) = (session("ends"), session("stays"));
    store.create(&mut ends).await.unwrap();
    store.create(&mut stays).await.unwrap();
    store.delete(&ends.id).await.unwrap();
    store.delete(&ends.id).await.unwrap();
    assert_eq!(store.load(&ends.id).await.unwrap(), None);
    assert_eq!(store.load(&stays.id).await.unwrap(), Some(stays));
}

#[tokio::test]
async fn an_expired_session_is_not_loaded_not_even_within_its_last_second() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&pool(&folder.path().join("sessions.db"))).await;
    for expired in [expired("an hour ago"), {
        let mut record = session("just now");
        record.expiry_date = OffsetDateTime::now_utc();
        record
    }] {
        store.save(&expired).await.unwrap();
        assert_eq!(store.load(&expired.id).await.unwrap(), None);
    }
}

/// With a change of `save` that forgets the column, this deletes what is still alive.
#[tokio::test]
async fn a_session_that_is_prolonged_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&pool(&folder.path().join("sessions.db"))).await;
    let mut record = expired("back again");
    store.save(&record).await.unwrap();
    record.expiry_date = OffsetDateTime::now_utc() + time::Duration::hours(1);
    store.save(&record).await.unwrap();
    store.delete_expired().await.unwrap();
    assert_eq!(store.load(&record.id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn delete_expired_deletes_all_that_is_expired_and_nothing_else_in_batches() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let alive: Vec<_> = (0..3).map(|i| session(&i.to_string())).collect();
    let dead: Vec<_> = (0..1_100).map(|i| expired(&i.to_string())).collect();
    let records: Vec<_> = dead.iter().chain(&alive).collect();
    // The queue takes 1,024 at a time.
    for records in records.chunks(500) {
        let saves = records.iter().map(|record| store.save(record));
        for saved in join_all(saves).await {
            saved.unwrap();
        }
    }
    assert_eq!(rows(&pool), 1_103);
    let writes = pool.stats().writes;
    store.delete_expired().await.unwrap();
    assert_eq!(pool.stats().writes - writes, 3, "500, 500 and 100");
    assert_eq!(rows(&pool), 3);
    for record in alive {
        assert_eq!(store.load(&record.id).await.unwrap(), Some(record));
    }
}

/// The visitor comes back after the row was found to be expired, and before it is deleted.
#[tokio::test]
async fn a_session_that_is_prolonged_meanwhile_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let mut record = expired("back in time");
    store.save(&record).await.unwrap();
    let held_up = HeldUp::new(&pool).await;
    record.expiry_date = OffsetDateTime::now_utc() + time::Duration::hours(1);
    let save = begin(store.save(&record)).await;
    let waiting = pool.stats().writes_waiting;
    let deleting = store.clone();
    let deleting = tokio::spawn(async move { deleting.delete_expired().await });
    in_time(async {
        while pool.stats().writes_waiting == waiting {
            tokio::task::yield_now().await;
        }
    })
    .await;
    held_up.end().await;
    in_time(save).await.unwrap();
    in_time(deleting).await.unwrap().unwrap();
    assert_eq!(store.load(&record.id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn expired_sessions_can_be_deleted_by_a_task() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let period = Duration::from_millis(1);
    let task = tokio::spawn(store.clone().continuously_delete_expired(period));
    let alive = session("alive");
    store.save(&alive).await.unwrap();
    store.save(&expired("dead")).await.unwrap();
    in_time(async {
        while rows(&pool) > 1 {
            tokio::time::sleep(period).await;
        }
    })
    .await;
    assert!(!task.is_finished());
    task.abort();
    assert_eq!(store.load(&alive.id).await.unwrap(), Some(alive));
}

/// A store whose loads stand in the queue of the writes would hang here.
#[tokio::test]
async fn loads_do_not_wait_for_writes() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let record = session("ada");
    store.save(&record).await.unwrap();
    let held_up = HeldUp::new(&pool).await;
    let mut changed = record.clone();
    changed.data.insert("name".into(), json!("changed"));
    let save = begin(store.save(&changed)).await;
    let loaded = in_time(store.load(&record.id)).await.unwrap();
    assert_eq!(loaded, Some(record), "what is not committed is not seen");
    held_up.end().await;
    in_time(save).await.unwrap();
    let loaded = store.load(&changed.id).await.unwrap();
    assert_eq!(loaded, Some(changed), "what has returned is committed");
}

#[tokio::test]
async fn saves_that_wait_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let records: Vec<_> = (0..100).map(|i| session(&i.to_string())).collect();
    let before = pool.stats();
    let held_up = HeldUp::new(&pool).await;
    let mut saves = Vec::new();
    for record in &records {
        saves.push(begin(store.save(record)).await);
    }
    held_up.end().await;
    for saved in in_time(join_all(saves)).await {
        saved.unwrap();
    }
    let after = pool.stats();
    assert_eq!(after.writes - before.writes, 101);
    let groups = after.write_groups - before.write_groups;
    assert!(groups < 20, "{groups} transactions for 101 writes");
    assert_eq!(rows(&pool), 100);
}

/// As when a visitor goes away while the server works for the visitor.
#[tokio::test]
async fn a_save_that_is_dropped_before_its_turn_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let store = store(&pool).await;
    let (gone, stays) = (session("gone"), session("stays"));
    let held_up = HeldUp::new(&pool).await;
    let dropped = begin(store.save(&gone)).await;
    let save = begin(store.save(&stays)).await;
    drop(dropped);
    held_up.end().await;
    in_time(save).await.unwrap();
    assert_eq!(rows(&pool), 1);
    assert_eq!(store.load(&stays.id).await.unwrap(), Some(stays));
}

#[tokio::test]
async fn stores_in_two_tables_of_one_pool_keep_apart() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let users = store(&pool).await;
    // Each of these must be quoted.
    for name in ["order", "admin-sessions", "2nd"] {
        let admins = LeasepoolStore::new(&pool).with_table_name(name).unwrap();
        admins.migrate().await.unwrap();
        let mut record = session(name);
        admins.create(&mut record).await.unwrap();
        assert_eq!(users.load(&record.id).await.unwrap(), None);
        assert_eq!(admins.load(&record.id).await.unwrap(), Some(record));
    }
    assert_eq!(rows(&pool), 0);
}

#[test]
fn names_that_are_no_table_s_are_refused() {
    let pool = Pool::builder(Database::memory()).build().unwrap();
    for name in ["", "a b", "a\"b", "a;b", "täble", "sqlite_x", "SQLite_x"] {
        let refused = LeasepoolStore::new(&pool).with_table_name(name);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?}")), "{error}");
    }
}

#[tokio::test]
async fn errors_say_of_which_kind_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder.path().join("sessions.db"));
    let no_table = LeasepoolStore::new(&pool);
    let mut record = session("ada");
    for error in [
        no_table.create(&mut record).await.unwrap_err(),
        no_table.save(&record).await.unwrap_err(),
        no_table.load(&record.id).await.unwrap_err(),
        no_table.delete(&record.id).await.unwrap_err(),
        no_table.delete_expired().await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::Backend(text) if text.contains("no such table")),
            "{error:?}"
        );
    }
    let store = store(&pool).await;
    store.save(&record).await.unwrap();
    let spoil = pool.anonymous();
    let spoil = spoil.execute_async("UPDATE tower_sessions SET data = x'00'", ());
    assert_eq!(spoil.await.unwrap(), 1);
    let error = store.load(&record.id).await.unwrap_err();
    assert!(matches!(error, Error::Decode(_)), "{error:?}");

    pool.close_async().await.unwrap();
    let error = store.load(&record.id).await.unwrap_err();
    assert!(
        matches!(&error, Error::Backend(text) if text == "the pool is closed"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_file_of_the_store_for_tokio_rusqlite_is_used_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.db");
    let conn = tokio_rusqlite::Connection::open(&path).await.unwrap();
    let theirs = RusqliteStore::new(conn.clone());
    theirs.migrate().await.unwrap();
    let (mut alive, mut dead) = (session("alive"), expired("dead"));
    theirs.create(&mut alive).await.unwrap();
    theirs.create(&mut dead).await.unwrap();
    conn.close().await.unwrap();

    let pool = pool(&path);
    let store = store(&pool).await;
    assert_eq!(store.load(&alive.id).await.unwrap(), Some(alive.clone()));
    store.delete_expired().await.unwrap();
    assert_eq!(rows(&pool), 1);
    let ours = session("ours");
    store.save(&ours).await.unwrap();
    pool.close_async().await.unwrap();

    // And back.
    let conn = Connection::open(&path).unwrap();
    let theirs = RusqliteStore::new(tokio_rusqlite::Connection::from(conn));
    assert_eq!(theirs.load(&alive.id).await.unwrap(), Some(alive));
    assert_eq!(theirs.load(&ours.id).await.unwrap(), Some(ours));
}
