//! The small job that each program does, before and after: it counts the visits of pages.
//! It knows no library: only SQL and what must come out.

/// How many sessions there are at the same time.
pub const SESSIONS: i64 = 4;
/// How many visits each session makes.
pub const VISITS: i64 = 25;
/// The connections of a pool, where there is one.
pub const CONNECTIONS: usize = 4;

pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS page (name TEXT PRIMARY KEY, visits INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS visit (session INTEGER NOT NULL, page TEXT NOT NULL);";

/// Two statements that belong together.
pub const COUNT: &str =
    "INSERT INTO page VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET visits = visits + 1";
pub const NOTE: &str = "INSERT INTO visit VALUES (?1, ?2)";

/// A short read, through an index.
pub const VISITS_OF: &str = "SELECT visits FROM page WHERE name = ?1";
/// Two reads that must be of one moment. The second one looks at every row.
pub const PAGES: &str = "SELECT name, visits FROM page ORDER BY name";
pub const TOTAL: &str = "SELECT count(*) FROM visit";

/// What a program has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub pages: Vec<(String, i64)>,
    pub total: i64,
}

/// The page of a session's visit.
pub fn page(visit: i64) -> &'static str {
    match visit % 5 {
        1 => "news",
        3 => "about",
        _ => "home",
    }
}

/// What every program must have counted.
pub fn expected() -> Report {
    let of_each = SESSIONS * VISITS / 5;
    let pages = [("about", 1), ("home", 3), ("news", 1)];
    Report {
        pages: pages
            .map(|(name, n)| (name.to_owned(), n * of_each))
            .to_vec(),
        total: 5 * of_each,
    }
}
