//! The command line. What is wrong with it is said in one line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// Set by the process on stage for the processes that play: it plays one act and tells on stdout.
const CHILD: &str = "LEASEPOOL_AGENTS_CHILD";

/// Serves many agents over a few connections, under a low descriptor limit, and shows what happens
/// to servers that do it in other ways.
#[derive(Parser, Debug, Clone)]
#[command(name = "agents", version)]
pub(crate) struct Args {
    /// How many agents there are [default: 1000; 200 with --short]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    agents: Option<u64>,
    /// How many turns are served in all [default: 20000; 1000 with --short]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    turns: Option<u64>,
    /// How many connections the pools have
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    connections: u64,
    /// How many threads serve
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    threads: u64,
    /// How many descriptors each process may have
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=1_000_000))]
    fd_limit: u64,
    /// Play this act only
    #[arg(long, value_enum)]
    act: Option<Act>,
    /// A database file for each agent, in a folder. The owned act then keeps a connection to each agent's
    /// file; there is no pinned act, as a pool for each agent would be the same again
    #[arg(long)]
    per_agent: bool,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The database, or with --per-agent the folder; it may not exist yet. With several acts, each adds
    /// its name
    /// [default: in a temporary folder]
    #[arg(long, value_name = "PATH")]
    db: Option<PathBuf>,
    /// Keep the databases
    #[arg(long)]
    keep: bool,
    /// Messages to use instead of generated ones: plain text, one a line, or JSON lines with "role" and
    /// "content"
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
    /// Write the chart as SVG, too
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
    /// A few seconds only
    #[arg(long)]
    short: bool,
    /// End with one JSON object a line for each act, the leased one last
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
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

impl Args {
    /// # Errors
    /// With the status to exit with, after saying why.
    pub(crate) fn from_command_line() -> Result<Args, ExitCode> {
        Args::try_parse().and_then(Args::checked).map_err(|error| {
            if !error.use_stderr() {
                // --help, --version.
                print!("{error}");
                return ExitCode::SUCCESS;
            }
            let text = error.to_string();
            let lines = text.lines().take_while(|line| !line.is_empty());
            let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
            eprintln!("{line}");
            ExitCode::from(2)
        })
    }

    fn checked(self) -> Result<Args, clap::Error> {
        if self.per_agent && self.act == Some(Act::Pinned) {
            let what = "--per-agent has no act 'pinned': a pool serves one file";
            return Err(
                <Args as CommandFactory>::command().error(ErrorKind::ArgumentConflict, what)
            );
        }
        Ok(self)
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
