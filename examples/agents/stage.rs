//! The process on stage: starts the acts one after the other, shows how they go, and gives the verdict.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::args::{Act, Args};
use crate::chart::{self, Curve};
use crate::probe::limit_descriptors;
use crate::progress::Progress;
use crate::report::{Report, Sample, Told};
use crate::transcript::Transcript;

/// Returns whether all held.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    if let Some(file) = args.transcript() {
        Transcript::read(file)?.tell_bad_lines();
    }
    let databases = Databases::new(args)?;
    limit_descriptors(args.fd_limit())?;
    println!(
        "{} agents{}, {} turns, {} threads, {} connections, {} descriptors for each process\n",
        args.agents(),
        if args.per_agent() {
            ", each with a database of its own"
        } else {
            ""
        },
        args.turns(),
        args.threads(),
        args.connections(),
        args.fd_limit()
    );
    let mut played = Vec::new();
    for (act, path) in &databases.of_acts {
        played.push(play(args, *act, path)?);
    }
    let curves: Vec<_> = played
        .iter()
        .map(|(report, samples)| Curve { report, samples })
        .collect();
    println!("\n{}", table(&curves));
    println!("{}", chart::terminal(&curves));
    if let Some(file) = args.chart() {
        chart::write_svg(file, &curves)?;
        println!("chart: {}", file.display());
    }
    if args.keep() {
        for (_, path) in &databases.of_acts {
            println!("kept: {}", path.display());
        }
    }
    let held = verdict(args, &curves);
    if args.json() {
        for Curve { report, .. } in &curves {
            println!("{}", report.to_json());
        }
    }
    Ok(held)
}

fn play(args: &Args, act: Act, db: &Path) -> Result<(Report, Vec<Sample>), String> {
    let failed = |error: &dyn std::fmt::Display| format!("act {}: {error}", act.name());
    let mut child = args
        .command(act, db)
        .map_err(|e| failed(&e))?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e))?;
    let mut progress = Progress::new(act, args.turns());
    let mut samples = Vec::new();
    let mut report = None;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(|e| failed(&e))?;
            let Ok(value) = serde_json::from_str(&line) else {
                continue;
            };
            if let Some(sample) = Sample::from_json(&value) {
                let found = sample.descriptors;
                let message = format!(
                    "{:.0} turns/s  descriptors: db {} wal {} shm {}",
                    sample.turns as f64 / sample.at_s.max(1e-3),
                    found.db,
                    found.wal,
                    found.shm
                );
                progress.show(sample.turns, &message);
                samples.push(sample);
            } else if let Some(found) = Report::from_json(&value) {
                report = Some(found);
            }
        }
    }
    progress.clear();
    let output = child.wait_with_output().map_err(|e| failed(&e))?;
    let Some(report) = report.filter(|_| output.status.success()) else {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("it ended without a word");
        return Err(said.trim_start_matches("error: ").to_owned());
    };
    println!("{:<7} {}", act.name(), story(act, &report));
    Ok((report, samples))
}

/// What became of an act, in one line.
fn story(act: Act, report: &Report) -> String {
    let held = report.agents_held.unwrap_or(0);
    match (&report.error, act) {
        (None, _) => format!(
            "served all {} turns in {:.2} s, {:.0} turns/s",
            report.turns,
            report.elapsed_s,
            report.turns_per_s()
        ),
        (Some(error), Act::Owned) => format!(
            "died at agent {}, after {} turns: {error}",
            held + 1,
            report.turns
        ),
        (Some(error), Act::Pinned) => format!(
            "starved after {held} agents and {} turns: {error}",
            report.turns
        ),
        (Some(error), Act::Leased) => {
            format!("failed after {} turns: {error}", report.turns)
        }
    }
}

fn table(curves: &[Curve<'_>]) -> String {
    let mut text = format!(
        "{:<8}{:>8}{:>8}{:>9}{:>10}{:>8}{:>8}{:>8}{:>9}{:>12}\n",
        "act", "turns", "errors", "turns/s", "max db", "wal", "shm", "ceiling", "hits", "rows"
    );
    for Curve { report, .. } in curves {
        let ceiling = report
            .fd_ceiling
            .map_or("none".to_owned(), |n| n.to_string());
        let share = match report.hits + report.misses {
            0 => "-".to_owned(),
            all => format!("{:.0} %", 100.0 * report.hits as f64 / all as f64),
        };
        text += &format!(
            "{:<8}{:>8}{:>8}{:>9.0}{:>10}{:>8}{:>8}{:>8}{:>9}{:>12}\n",
            report.act,
            report.turns,
            report.errors,
            report.turns_per_s(),
            report.peak.db,
            report.peak.wal,
            report.peak.shm,
            ceiling,
            share,
            report.rows_found
        );
    }
    text
}

/// Says what held and what did not.
fn verdict(args: &Args, curves: &[Curve<'_>]) -> bool {
    let mut all = true;
    let mut check = |held: bool, what: String| {
        println!("{} {what}", if held { "ok    " } else { "FAILED" });
        all &= held;
    };
    for Curve { report, .. } in curves {
        check(
            report.is_sound(),
            format!(
                "{}: {} rows acknowledged, {} found{}, integrity_check{}: {}",
                report.act,
                report.rows_expected,
                report.rows_found,
                report
                    .files
                    .map_or(String::new(), |n| format!(" in {n} files")),
                report
                    .files_checked
                    .map_or(String::new(), |n| format!(" of {n} files")),
                report.integrity
            ),
        );
        if report.act == Act::Leased.name() {
            let ceiling = report.fd_ceiling.unwrap_or(0);
            check(
                report.is_served(args.connections() as u64, args.per_agent()),
                format!(
                    "leased: {} of {} turns, {} errors; at most {} + {} + {} descriptors (db, wal, shm), \
                     {} at one time, under a ceiling of {ceiling}",
                    report.turns,
                    report.turns_wanted,
                    report.errors,
                    report.peak.db,
                    report.peak.wal,
                    report.peak.shm,
                    report.peak_all
                ),
            );
        }
    }
    all
}

/// The databases of the acts, which go with the process unless they are to be kept.
struct Databases {
    of_acts: Vec<(Act, PathBuf)>,
    per_agent: bool,
    keep: bool,
    temporary: Option<tempfile::TempDir>,
}

impl Databases {
    /// Picks names that no file has yet: what exists is never touched, nor removed at the end.
    fn new(args: &Args) -> Result<Databases, String> {
        let (base, temporary) = match args.db() {
            Some(path) => (path.to_path_buf(), None),
            None => {
                let folder =
                    tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
                let name = if args.per_agent() {
                    "agents"
                } else {
                    "agents.db"
                };
                (folder.path().join(name), Some(folder))
            }
        };
        let acts = args.acts();
        let mut of_acts = Vec::new();
        for act in &acts {
            let mut name = base.clone().into_os_string();
            if acts.len() > 1 {
                name.push(".");
                name.push(act.name());
            }
            of_acts.push((*act, free_path(Path::new(&name))?));
        }
        Ok(Databases {
            of_acts,
            per_agent: args.per_agent(),
            keep: args.keep(),
            temporary,
        })
    }
}

/// The absolute path of a file that does not exist, in a folder that does: the probe compares paths
/// with what the kernel says.
fn free_path(path: &Path) -> Result<PathBuf, String> {
    let name = path
        .file_name()
        .ok_or_else(|| format!("{}: not the name of a file", path.display()))?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let path = folder
        .canonicalize()
        .ok()
        .filter(|folder| folder.is_dir())
        .ok_or_else(|| format!("{}: no such folder", folder.display()))?
        .join(name);
    if path.symlink_metadata().is_ok() {
        return Err(format!("{} exists; it will not be touched", path.display()));
    }
    Ok(path)
}

impl Drop for Databases {
    fn drop(&mut self) {
        match self.temporary.take() {
            Some(folder) if self.keep => _ = folder.keep(),
            None if !self.keep => {
                for (_, path) in &self.of_acts {
                    if self.per_agent {
                        let _ = std::fs::remove_dir_all(path);
                        continue;
                    }
                    for suffix in ["", "-wal", "-shm"] {
                        let mut name = path.clone().into_os_string();
                        name.push(suffix);
                        let _ = std::fs::remove_file(PathBuf::from(name));
                    }
                }
            }
            _ => {}
        }
    }
}
