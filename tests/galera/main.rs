//! Leases over a Galera cluster: MariaDB on three nodes, each of which takes writes. The test starts the nodes on free ports,
//! and stops them by their pids.
//!
//! It takes two minutes and half a gigabyte, so it runs only where it is asked for:
//! `LEASEPOOL_GALERA=1 cargo test -p leasepool-galera-tests -- --nocapture`, with Debian's `mariadb-server`, `galera-4` and
//! `rsync` installed.

mod cluster;
#[path = "../postgres-server/guardian.rs"]
mod guardian;
mod leases;
mod nodes;
