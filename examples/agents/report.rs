//! What an act tells of itself, on its way and at its end.

use serde_json::{Value, json};

use crate::probe::Descriptors;

/// Something that an act tells as one line of JSON.
pub(crate) trait Told {
    fn to_json(&self) -> Value;
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) at_s: f64,
    pub(crate) turns: u64,
    pub(crate) descriptors: Descriptors,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) act: String,
    pub(crate) agents: u64,
    pub(crate) turns: u64,
    pub(crate) turns_wanted: u64,
    pub(crate) errors: u64,
    pub(crate) elapsed_s: f64,
    pub(crate) fd_limit: u64,
    pub(crate) fd_ceiling: Option<u64>,
    /// The most of each kind, and the most of all kinds at one time.
    pub(crate) peak: Descriptors,
    pub(crate) peak_all: u64,
    pub(crate) rows_expected: u64,
    pub(crate) rows_found: u64,
    pub(crate) integrity: String,
    /// With a file for each agent: how many there were, and how many of them `integrity` is about.
    pub(crate) files: Option<u64>,
    pub(crate) files_checked: Option<u64>,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) reclaims: u64,
    pub(crate) evictions: u64,
    /// What ended the act, and how many agents had a connection to themselves then.
    pub(crate) error: Option<String>,
    pub(crate) agents_held: Option<usize>,
}

impl Report {
    pub(crate) fn turns_per_s(&self) -> f64 {
        self.turns as f64 / self.elapsed_s.max(1e-9)
    }

    /// What an act must not do, however it ends: lose a row that it had acknowledged. (An act that dies
    /// in the middle of a turn may have committed one that it had no time to acknowledge.)
    pub(crate) fn is_sound(&self) -> bool {
        self.integrity == "ok" && self.rows_found == self.rows_expected
    }

    /// Nothing failed, and the descriptors stayed under the ceiling.
    pub(crate) fn is_served(&self, connections: u64, per_agent: bool) -> bool {
        self.errors == 0
            && self.turns == self.turns_wanted
            && self.peak.db <= connections
            && self.peak.wal <= connections
            && self.peak.shm <= if per_agent { connections } else { 1 }
            && self
                .fd_ceiling
                .is_some_and(|ceiling| self.peak_all <= ceiling)
    }

    pub(crate) fn from_json(value: &Value) -> Option<Report> {
        let number = |key: &str| value[key].as_u64();
        Some(Report {
            act: value["act"].as_str()?.to_owned(),
            agents: number("agents")?,
            turns: number("turns")?,
            turns_wanted: number("turns_wanted")?,
            errors: number("errors")?,
            elapsed_s: value["elapsed_s"].as_f64()?,
            fd_limit: number("fd_limit")?,
            fd_ceiling: number("fd_ceiling"),
            peak: Descriptors {
                db: number("fd_max_db")?,
                wal: number("fd_max_wal")?,
                shm: number("fd_max_shm")?,
                other: number("fd_max_other")?,
            },
            peak_all: number("fd_max_all")?,
            rows_expected: number("rows_expected")?,
            rows_found: number("rows_found")?,
            integrity: value["integrity"].as_str()?.to_owned(),
            files: number("files"),
            files_checked: number("files_checked"),
            hits: number("hits")?,
            misses: number("misses")?,
            reclaims: number("reclaims")?,
            evictions: number("evictions")?,
            error: value["error"].as_str().map(str::to_owned),
            agents_held: number("agents_held").map(|n| n as usize),
        })
    }
}

impl Told for Report {
    fn to_json(&self) -> Value {
        json!({
            "act": self.act,
            "agents": self.agents,
            "turns": self.turns,
            "turns_wanted": self.turns_wanted,
            "errors": self.errors,
            "elapsed_s": self.elapsed_s,
            "turns_per_s": self.turns_per_s(),
            "fd_limit": self.fd_limit,
            "fd_ceiling": self.fd_ceiling,
            "fd_max_db": self.peak.db,
            "fd_max_wal": self.peak.wal,
            "fd_max_shm": self.peak.shm,
            "fd_max_other": self.peak.other,
            "fd_max_all": self.peak_all,
            "rows_expected": self.rows_expected,
            "rows_found": self.rows_found,
            "integrity": self.integrity,
            "files": self.files,
            "files_checked": self.files_checked,
            "hits": self.hits,
            "misses": self.misses,
            "reclaims": self.reclaims,
            "evictions": self.evictions,
            "error": self.error,
            "agents_held": self.agents_held,
        })
    }
}

impl Sample {
    pub(crate) fn from_json(value: &Value) -> Option<Sample> {
        let sample = &value["sample"];
        Some(Sample {
            at_s: sample["at_s"].as_f64()?,
            turns: sample["turns"].as_u64()?,
            descriptors: Descriptors {
                db: sample["db"].as_u64()?,
                wal: sample["wal"].as_u64()?,
                shm: sample["shm"].as_u64()?,
                other: sample["other"].as_u64()?,
            },
        })
    }
}

impl Told for Sample {
    fn to_json(&self) -> Value {
        let Descriptors {
            db,
            wal,
            shm,
            other,
        } = self.descriptors;
        json!({ "sample": {
            "at_s": self.at_s, "turns": self.turns,
            "db": db, "wal": wal, "shm": shm, "other": other,
        }})
    }
}
