//! What became of the acts: a line for each, a table, and what held.

use std::time::Duration;

use leasepool::Stats;

use crate::args::Args;

pub(crate) struct Report {
    pub(crate) act: &'static str,
    pub(crate) turns: u64,
    pub(crate) elapsed: Duration,
    /// The most connections that the server counted at one time.
    pub(crate) most: u64,
    /// Turns that found the setting of another agent.
    pub(crate) strangers: u64,
    pub(crate) rows: u64,
    /// What ended the act.
    pub(crate) failure: Option<String>,
    /// How many sessions had a connection to themselves in the end.
    pub(crate) sessions: Option<usize>,
    pub(crate) stats: Option<Box<Stats>>,
}

impl Report {
    pub(crate) fn with_sessions(self, sessions: usize) -> Report {
        let sessions = Some(sessions);
        Report { sessions, ..self }
    }

    pub(crate) fn with_pool(self, stats: &Stats) -> Report {
        let stats = Some(Box::new(stats.clone()));
        Report { stats, ..self }
    }

    fn per_second(&self) -> f64 {
        self.turns as f64 / self.elapsed.as_secs_f64()
    }

    /// What became of the act, in one line.
    pub(crate) fn story(&self) -> String {
        let (turns, seconds) = (self.turns, self.elapsed.as_secs_f64());
        match (&self.failure, self.sessions) {
            (None, _) => format!("served all {turns} turns in {seconds:.2} s"),
            (Some(why), Some(sessions)) => {
                format!("failed with {sessions} sessions, after {turns} turns: {why}")
            }
            (Some(why), None) => format!("failed after {turns} turns: {why}"),
        }
    }
}

pub(crate) fn table(reports: &[Report]) -> String {
    let mut text = format!(
        "{:<8}{:>8}{:>10}{:>18}{:>8}{:>8}{:>8}{:>8}\n",
        "act", "turns", "turns/s", "most connections", "opens", "hits", "resets", "rows"
    );
    for report in reports {
        let (opens, hits, resets) = match &report.stats {
            Some(stats) => {
                let leases = (stats.hits + stats.misses).max(1);
                let hits = 100.0 * stats.hits as f64 / leases as f64;
                let (opens, resets) = (stats.opens.to_string(), stats.resets.to_string());
                (opens, format!("{hits:.0} %"), resets)
            }
            None => ("-".into(), "-".into(), "-".into()),
        };
        text += &format!(
            "{:<8}{:>8}{:>10.0}{:>18}{opens:>8}{hits:>8}{resets:>8}{:>8}\n",
            report.act,
            report.turns,
            report.per_second(),
            report.most,
            report.rows
        );
    }
    text
}

/// Says what held and what did not.
pub(crate) fn verdict(reports: &[Report], args: &Args) -> bool {
    let mut all = true;
    for report in reports {
        let Report { act, most, .. } = report;
        let connections = args.connections as u64;
        let why = report.failure.as_deref().unwrap_or("nothing failed");
        let sessions = report.sessions.unwrap_or(0);
        let (held, what) = match *act {
            "owned" => (
                why.contains("53300"),
                format!("the server gave {sessions} sessions a connection, and refused the next"),
            ),
            "pinned" => (
                report.failure.is_some() && sessions == args.connections && *most == connections,
                format!("{sessions} sessions kept all {most} connections, and the next starved"),
            ),
            _ => (
                report.failure.is_none()
                    && (report.turns, report.rows) == (args.turns, args.turns)
                    && report.strangers == 0
                    && (1..=connections).contains(most),
                format!(
                    "{} of {} turns, {} rows found, at most {most} connections, {} turns found another agent's setting",
                    report.turns, args.turns, report.rows, report.strangers
                ),
            ),
        };
        println!("{} {act}: {what}", if held { "ok    " } else { "FAILED" });
        all &= held;
    }
    all
}

/// An error with all of its causes, and PostgreSQL's code for it.
pub(crate) fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<postgres::Error>()
            && let Some(code) = refused.code()
        {
            text = format!("{text} ({})", code.code());
        }
        next = error.source();
        let told = next.map(ToString::to_string);
        if let Some(told) = told.filter(|told| !text.contains(told.as_str())) {
            text = format!("{text}: {told}");
        }
    }
    text
}
