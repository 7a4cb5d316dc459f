//! What the tests share: stores on files, sessions to put in, and a write that holds the queue up.
//! It checks nothing.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::poll_fn;
use leasepool::{Database, Pool};
use leasepool_tower_sessions_store::LeasepoolStore;
use serde_json::json;
use time::OffsetDateTime;
use tower_sessions::session::{Id, Record};

/// No test takes so long, unless it hangs.
const AT_MOST: Duration = Duration::from_secs(60);

pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(AT_MOST, work).await;
    done.expect("the test hangs")
}

pub(crate) fn pool(path: &Path) -> Pool {
    Pool::builder(Database::file(path))
        .max_connections(4)
        .lease_timeout(AT_MOST)
        .build()
        .unwrap()
}

pub(crate) async fn store(pool: &Pool) -> LeasepoolStore {
    let store = LeasepoolStore::new(pool);
    store.migrate().await.unwrap();
    store
}

/// A session that ends in an hour.
pub(crate) fn session(name: &str) -> Record {
    ends_in(time::Duration::hours(1), name)
}

pub(crate) fn expired(name: &str) -> Record {
    ends_in(-time::Duration::hours(1), name)
}

fn ends_in(time: time::Duration, name: &str) -> Record {
    Record {
        id: Id::default(),
        data: [("name".to_owned(), json!(name))].into(),
        expiry_date: OffsetDateTime::now_utc() + time,
    }
}

/// The rows of the table, expired ones included.
pub(crate) fn rows(pool: &Pool) -> i64 {
    let lease = pool.get().unwrap();
    let count = "SELECT count(*) FROM tower_sessions";
    lease.query_row(count, [], |row| row.get(0)).unwrap()
}

/// A write of the pool that lasts until this is dropped: what is written meanwhile waits in the queue.
pub(crate) struct HeldUp {
    end: Option<mpsc::Sender<()>>,
    write: Option<tokio::task::JoinHandle<()>>,
}

impl HeldUp {
    pub(crate) async fn new(pool: &Pool) -> Self {
        let (end, ended) = mpsc::channel();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let app = pool.anonymous();
        let write = tokio::spawn(async move {
            let write = app.write_async(move |_| {
                let _ = begin.send(());
                let _ = ended.recv();
                Ok(())
            });
            write.await.unwrap();
        });
        begun.await.unwrap();
        HeldUp {
            end: Some(end),
            write: Some(write),
        }
    }

    pub(crate) async fn end(mut self) {
        self.end.take();
        if let Some(write) = self.write.take() {
            write.await.unwrap();
        }
    }
}

/// Polls a future once, which is enough for a write to join the queue, and gives it back.
pub(crate) async fn begin<F: Future + Unpin>(mut work: F) -> F {
    poll_fn(|cx| {
        assert!(pin!(&mut work).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    work
}
