//! The command line. What is wrong with it is said in one line.

use std::ops::RangeInclusive;
use std::process::ExitCode;

use lexopt::prelude::{Long, Short, ValueExt};
use lexopt::{Error, Parser};

const HELP: &str = "\
Starts a PostgreSQL server, and serves many agents over a few connections to it, in four ways.

Usage: postgres_agents [OPTIONS]

      --agents N        How many agents there are, 200 or more [default: 1000]
      --connections N   How many connections the pools have, at most 64 [default: 8]
      --threads N       How many threads serve, or how many tasks [default: 32]
      --turns N         How many turns are served in all [default: 20000; 2000 with --quick]
      --seed N          Seed of everything that is drawn [default: 1]
      --quick           A few seconds only
  -h, --help            Print this
";

#[derive(Debug, Clone)]
pub(crate) struct Args {
    pub(crate) agents: u64,
    pub(crate) connections: usize,
    pub(crate) threads: u64,
    pub(crate) turns: u64,
    pub(crate) seed: u64,
}

impl Args {
    /// # Errors
    /// With the status to exit with, after saying why.
    pub(crate) fn from_command_line() -> Result<Args, ExitCode> {
        match Args::parse(Parser::from_env()) {
            Ok(Some(args)) => Ok(args),
            Ok(None) => {
                print!("{HELP}");
                Err(ExitCode::SUCCESS)
            }
            Err(error) => {
                eprintln!("error: {error}");
                Err(ExitCode::from(2))
            }
        }
    }

    fn parse(mut parser: Parser) -> Result<Option<Args>, Error> {
        let (mut turns, mut quick) = (None, false);
        let mut args = Args {
            agents: 1_000,
            connections: 8,
            threads: 32,
            turns: 0,
            seed: 1,
        };
        while let Some(arg) = parser.next()? {
            match arg {
                // Twice as many as the server gives connections.
                Long("agents") => args.agents = number(&mut parser, "agents", 200..=1_000_000)?,
                Long("connections") => {
                    args.connections = number(&mut parser, "connections", 1..=64)? as usize;
                }
                Long("threads") => args.threads = number(&mut parser, "threads", 1..=1_000)?,
                Long("turns") => turns = Some(number(&mut parser, "turns", 1_000..=100_000_000)?),
                Long("seed") => args.seed = number(&mut parser, "seed", 0..=u64::MAX)?,
                Long("quick") => quick = true,
                Short('h') | Long("help") => return Ok(None),
                arg => return Err(arg.unexpected()),
            }
        }
        args.turns = turns.unwrap_or(if quick { 2_000 } else { 20_000 });
        Ok(Some(args))
    }
}

/// The value of an option.
fn number(parser: &mut Parser, option: &str, range: RangeInclusive<u64>) -> Result<u64, Error> {
    let value = parser.value()?.string()?;
    match value.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => {
            let (least, most) = (range.start(), range.end());
            let why = format!("--{option} {value}: expected a number from {least} to {most}");
            Err(why.into())
        }
    }
}
