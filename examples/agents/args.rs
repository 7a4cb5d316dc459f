//! The command line. What is wrong with it is said in one line.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::{Long, Short, ValueExt};
use lexopt::{Arg, Parser};

/// Set by the process on stage for the processes that play: it plays one act and tells on stdout.
const CHILD: &str = "LEASEPOOL_AGENTS_CHILD";

const HELP: &str = "\
Serves many agents over a few connections, under a low descriptor limit, and shows what happens
to servers that do it in other ways.

Usage: agents [OPTIONS]

      --agents N           How many agents there are [default: 1000; 200 with --short]
      --turns N            How many turns are served in all [default: 20000; 1000 with --short]
      --connections N      How many connections the pools have [default: 8]
      --threads N          How many threads serve [default: 16]
      --fd-limit N         How many descriptors each process may have [default: 64]
      --act ACT            Play this act only: owned (every cached agent keeps its own connection),
                           pinned (cached agents keep guards of an r2d2 pool), leased (leasepool)
      --per-agent          A database file for each agent, in a folder. The owned act then keeps a
                           connection to each agent's file; there is no pinned act, as a pool for
                           each agent would be the same again
      --seed N             Seed of everything that is drawn [default: 1]
      --db PATH            The database, or with --per-agent the folder; it may not exist yet. With
                           several acts, each adds its name [default: in a temporary folder]
      --keep               Keep the databases
      --transcript FILE    Messages to use instead of generated ones: plain text, one a line, or
                           JSON lines with \"role\" and \"content\"
      --chart FILE.svg     Write the chart as SVG, too
      --short              A few seconds only
      --json               End with one JSON object a line for each act, the leased one last
  -h, --help               Print this
  -V, --version            Print the version
";

#[derive(Debug, Clone)]
pub(crate) struct Args {
    agents: Option<u64>,
    turns: Option<u64>,
    connections: u64,
    threads: u64,
    fd_limit: u64,
    act: Option<Act>,
    per_agent: bool,
    seed: u64,
    db: Option<PathBuf>,
    keep: bool,
    transcript: Option<PathBuf>,
    chart: Option<PathBuf>,
    short: bool,
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Every cached agent keeps its own connection
    Owned,
    /// Cached agents keep guards of an r2d2 pool
    Pinned,
    /// leasepool
    Leased,
}

impl Act {
    pub(crate) const ALL: [Act; 3] = [Act::Owned, Act::Pinned, Act::Leased];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Act::Owned => "owned",
            Act::Pinned => "pinned",
            Act::Leased => "leased",
        }
    }
}

/// What the command line asks for.
enum Asked {
    Play(Args),
    Print(String),
}

impl Args {
    /// # Errors
    /// With the status to exit with, after saying why.
    pub(crate) fn from_command_line() -> Result<Args, ExitCode> {
        match Args::parse(Parser::from_env()) {
            Ok(Asked::Play(args)) => Ok(args),
            Ok(Asked::Print(text)) => {
                print!("{text}");
                Err(ExitCode::SUCCESS)
            }
            Err(error) => {
                eprintln!("error: {error}");
                Err(ExitCode::from(2))
            }
        }
    }

    fn parse(mut parser: Parser) -> Result<Asked, lexopt::Error> {
        let mut args = Args {
            agents: None,
            turns: None,
            connections: 8,
            threads: 16,
            fd_limit: 64,
            act: None,
            per_agent: false,
            seed: 1,
            db: None,
            keep: false,
            transcript: None,
            chart: None,
            short: false,
            json: false,
        };
        while let Some(arg) = parser.next()? {
            match arg {
                Long("agents") => {
                    args.agents = Some(number(&mut parser, "agents", 1..=1_000_000)?);
                }
                Long("turns") => {
                    args.turns = Some(number(&mut parser, "turns", 1..=100_000_000)?);
                }
                Long("connections") => {
                    args.connections = number(&mut parser, "connections", 1..=1_000)?;
                }
                Long("threads") => args.threads = number(&mut parser, "threads", 1..=1_000)?,
                Long("fd-limit") => {
                    args.fd_limit = number(&mut parser, "fd-limit", 16..=1_000_000)?;
                }
                Long("act") => args.act = Some(act(&mut parser)?),
                Long("per-agent") => args.per_agent = true,
                Long("seed") => args.seed = number(&mut parser, "seed", 0..=u64::MAX)?,
                Long("db") => args.db = Some(parser.value()?.into()),
                Long("keep") => args.keep = true,
                Long("transcript") => args.transcript = Some(parser.value()?.into()),
                Long("chart") => args.chart = Some(parser.value()?.into()),
                Long("short") => args.short = true,
                Long("json") => args.json = true,
                Short('h') | Long("help") => return Ok(Asked::Print(HELP.to_owned())),
                Short('V') | Long("version") => {
                    let version = concat!("agents ", env!("CARGO_PKG_VERSION"), "\n");
                    return Ok(Asked::Print(version.to_owned()));
                }
                Arg::Short(_) | Arg::Long(_) | Arg::Value(_) => return Err(arg.unexpected()),
            }
        }
        if args.per_agent && args.act == Some(Act::Pinned) {
            return Err("--per-agent has no act 'pinned': a pool serves one file".into());
        }
        Ok(Asked::Play(args))
    }

    pub(crate) fn act_in_this_process(&self) -> Option<Act> {
        std::env::var_os(CHILD).and(self.act)
    }

    /// The command that plays `act` on `db`.
    pub(crate) fn command(
        &self,
        act: Act,
        db: &std::path::Path,
    ) -> std::io::Result<std::process::Command> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.env(CHILD, "1").arg("--act").arg(act.name());
        let numbers = [
            ("--agents", self.agents()),
            ("--turns", self.turns()),
            ("--connections", self.connections),
            ("--threads", self.threads),
            ("--fd-limit", self.fd_limit),
            ("--seed", self.seed),
        ];
        for (option, number) in numbers {
            command.arg(option).arg(number.to_string());
        }
        command.arg("--db").arg(db);
        if self.per_agent {
            command.arg("--per-agent");
        }
        if let Some(file) = &self.transcript {
            command.arg("--transcript").arg(file);
        }
        Ok(command)
    }

    pub(crate) fn acts(&self) -> Vec<Act> {
        let all = Act::ALL.into_iter();
        all.filter(|act| match self.act {
            Some(only) => *act == only,
            None => !self.per_agent || *act != Act::Pinned,
        })
        .collect()
    }

    pub(crate) fn agents(&self) -> u64 {
        self.agents.unwrap_or(if self.short { 200 } else { 1_000 })
    }

    pub(crate) fn turns(&self) -> u64 {
        self.turns
            .unwrap_or(if self.short { 1_000 } else { 20_000 })
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections as usize
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads as usize
    }

    pub(crate) fn fd_limit(&self) -> u64 {
        self.fd_limit
    }

    pub(crate) fn per_agent(&self) -> bool {
        self.per_agent
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn db(&self) -> Option<&std::path::Path> {
        self.db.as_deref()
    }

    pub(crate) fn keep(&self) -> bool {
        self.keep
    }

    pub(crate) fn transcript(&self) -> Option<&std::path::Path> {
        self.transcript.as_deref()
    }

    pub(crate) fn chart(&self) -> Option<&std::path::Path> {
        self.chart.as_deref()
    }

    pub(crate) fn json(&self) -> bool {
        self.json
    }
}

/// The value of an option.
fn number(
    parser: &mut Parser,
    option: &str,
    range: RangeInclusive<u64>,
) -> Result<u64, lexopt::Error> {
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

fn act(parser: &mut Parser) -> Result<Act, lexopt::Error> {
    let value = parser.value()?.string()?;
    let found = Act::ALL.into_iter().find(|act| act.name() == value);
    found.ok_or_else(|| format!("--act {value}: expected owned, pinned or leased").into())
}
