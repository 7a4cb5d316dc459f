//! The main job: thousands of agents over a capped pool, under a low descriptor limit; and beside it,
//! what happens without.
//!
//! `cargo run --release --example agents`. Three acts of the same workload, each in a process of its
//! own: *owned* (every cached agent keeps a connection), *pinned* (cached agents keep r2d2 guards) and
//! *leased* (this crate). With `--per-agent`, each agent has a database of its own.

mod acts;
mod args;
mod chart;
mod popularity;
mod probe;
mod progress;
mod report;
mod stage;
mod transcript;
mod workload;

use std::process::ExitCode;

use args::Args;

fn main() -> ExitCode {
    let args = match Args::from_command_line() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let result = match args.act_in_this_process() {
        Some(act) => acts::play(act, &args).map(|()| true),
        None => stage::run(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}
