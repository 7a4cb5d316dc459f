//! The feature `status`: an axum router that shows what pools do, live.
//! It only looks at the pools: nothing here changes anything.
//!
//! # The status page
//!
//! ```no_run
//! use leasepool::{Database, Pool, status};
//!
//! # fn application() -> Result<axum::Router, leasepool::Error> {
//! let pool = Pool::builder(Database::file("chat.db")).build()?;
//! let page = status::Page::new(&pool).guarded(|head| {
//!     let token = head.headers.get("authorization");
//!     token.is_some_and(|token| token == "Bearer the-operators-secret")
//! });
//! let app = axum::Router::new().nest_service("/status", page);
//! # Ok(app)
//! # }
//! ```
//!
//! | path | what |
//! |---|---|
//! | `/` | a page for people: one file without external assets, live |
//! | `/status.json` | the same numbers, with the last five minutes |
//! | `/metrics` | the numbers of all pools in Prometheus' text format |
//! | `/events` | server-sent events, the numbers twice a second |
//! | `/descriptors` | the descriptors by the pool's books and by the kernel, as JSON: a check, on demand |
//! | `/healthz` | 200 unless a pool is down ([`Pool::health`]); the verdict in a word |
//! | `/readyz` | 200 if each pool [is ready](Pool::ready), 503 otherwise |
//!
//! With several pools, `?pool=1` selects the second for `/`, `/status.json`, `/events` and
//! `/descriptors`.
//!
//! `nest_service("/status", ..)` serves `/status` and `/status/`; `nest` only the first.
//!
//! # Who may see it
//! The page shows agents' ids and source lines, so that a router is made only by an explicit choice: [`Page::guarded`], or
//! [`Page::public`] where only operators can come anyway. The two probes answer every client: they show no more than
//! a word.
//!
//! A mount on loopback is not safe by itself: any page that a browser on the same machine has open can send requests there,
//! under a name of its own (DNS rebinding). Let the guard compare the header `Host` with the names that you use.

mod feed;
mod kernel;
mod library;
mod page;
mod prometheus;
mod snapshot;
mod watch;

pub use page::Page;
pub use snapshot::{Agents, Places};

#[allow(unused_imports, reason = "for links of the documentation")]
use crate::pool::Pool;
