//! The main example on PostgreSQL: a thousand agents on eight connections to a server, and what happens without leases.
//!
//! `cargo run --release -p postgres_agents`. It starts a server of its own, with PostgreSQL's default of 100 connections,
//! and lets agents take turns in four ways: *owned* (every session keeps a connection), *pinned* (sessions keep guards of
//! an r2d2 pool), *leased* (`Pool::managed`, threads) and *awaited* (`Pool::awaited`, tasks).

#![forbid(unsafe_code)]

mod acts;
mod args;
#[path = "../agents/popularity.rs"]
mod popularity;
mod report;
mod stage;

use std::process::ExitCode;

use leasepool_postgres_server::{Server, is_installed};

use crate::args::Args;
use crate::stage::Stage;

fn main() -> ExitCode {
    let args = match Args::from_command_line() {
        Ok(args) => args,
        Err(code) => return code,
    };
    if !is_installed() {
        eprintln!(
            "error: PostgreSQL is not installed: `initdb` is neither in /usr/lib/postgresql/*/bin nor in the PATH.\n\
             On Debian and Ubuntu, `apt-get install postgresql` installs it. The example starts a server of its own."
        );
        return ExitCode::from(2);
    }
    println!(
        "{} agents, {} turns, {} threads or tasks, {} connections in a pool, 100 on the server\n",
        args.agents, args.turns, args.threads, args.connections
    );
    // It ends when it is dropped, and also if this program is killed.
    let server = Server::start("max_connections=100\n");
    let mut reports = Vec::new();
    for (act, play) in acts::ALL {
        match Stage::set(act, &args, &server).and_then(|stage| play(stage, &args)) {
            Ok(report) => {
                println!("{:<8} {}", report.act, report.story());
                reports.push(report);
            }
            Err(error) => {
                eprintln!("error: act {act}: {}", report::with_sources(&*error));
                return ExitCode::from(2);
            }
        }
    }
    println!("\n{}", report::table(&reports));
    match report::verdict(&reports, &args) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
