//! Leases over real servers. Each test starts the servers that it needs, on free ports, and stops them by their pids. Where
//! PostgreSQL is not installed, the tests say so and pass, unless `LEASEPOOL_POSTGRES=required`.

mod bouncer;
mod closing;
mod common;
mod faults;
mod hostile;
mod leaks;
mod leases;
mod managers;
mod outages;
mod proxy;
mod web;

use leasepool_postgres_server as server;
