//! How many of a row of draws a cache of so many places can serve from what it has: what the rules of textbooks reach, for
//! comparison with what a pool reaches. Each draw must be served, so what is not there takes a place.

use std::collections::{BTreeSet, HashMap};

/// The share of hits, after the first tenth of the draws.
pub(crate) fn share(hits: impl Iterator<Item = bool>, draws: usize) -> f64 {
    let counted: Vec<bool> = hits.skip(draws / 10).collect();
    let hits = counted.iter().filter(|hit| **hit).count();
    hits as f64 / counted.len() as f64
}

/// The one that was not served for the longest time goes.
pub(crate) fn least_recent(draws: &[usize], places: usize) -> f64 {
    let when = 0..draws.len();
    rule(draws, places, when.map(|at| at as i64))
}

/// The one that will be served last goes: no rule can do better (Belady).
pub(crate) fn future(draws: &[usize], places: usize) -> f64 {
    let mut next: HashMap<usize, usize> = HashMap::new();
    let mut until: Vec<i64> = draws
        .iter()
        .enumerate()
        .rev()
        .map(|(at, drawn)| {
            let next = next.insert(*drawn, at);
            // Those that never come back are all alike, and each has a rank of its own.
            -(next.unwrap_or(2 * draws.len() - at) as i64)
        })
        .collect();
    until.reverse();
    rule(draws, places, until.into_iter())
}

/// The ones that the law of the draw serves most often have a place for good, and the others share the last one.
pub(crate) fn law(draws: &[usize], places: usize) -> f64 {
    let mut last = usize::MAX;
    let hits = draws.iter().map(|drawn| {
        // The lowest are drawn most often.
        if *drawn < places - 1 {
            return true;
        }
        std::mem::replace(&mut last, *drawn) == *drawn
    });
    share(hits, draws.len())
}

/// Each draw gives what it serves a rank. The one with the lowest rank goes.
fn rule(draws: &[usize], places: usize, ranks: impl Iterator<Item = i64>) -> f64 {
    let mut there: HashMap<usize, i64> = HashMap::new();
    let mut by_rank: BTreeSet<(i64, usize)> = BTreeSet::new();
    let hits = draws.iter().zip(ranks).map(|(drawn, rank)| {
        let before = there.insert(*drawn, rank);
        if let Some(before) = before {
            by_rank.remove(&(before, *drawn));
        } else if there.len() > places
            && let Some((_, victim)) = by_rank.pop_first()
        {
            there.remove(&victim);
        }
        by_rank.insert((rank, *drawn));
        before.is_some()
    });
    share(hits, draws.len())
}
