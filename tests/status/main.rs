//! The status router over real HTTP, and its page in a real browser.

mod browser;
mod dashboards;
mod driver;
mod exporter;
mod router;
mod server;
