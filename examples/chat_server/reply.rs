//! The reply: a few words about what was said, one after the other.
//! The point of this server is its sessions, not its wit.

const OPENINGS: [&str; 4] = [
    "I see.",
    "That is worth a thought.",
    "Good to know.",
    "Let me think about that.",
];
const ENDINGS: [&str; 4] = [
    "What else is on your mind?",
    "Tell me more whenever you like.",
    "I shall remember it.",
    "Shall we go on?",
];

/// The words of the reply to `text`, the `n`th message that this server was sent.
pub(crate) fn words(text: &str, n: i64) -> Vec<String> {
    let count = text.split_whitespace().count();
    let longest = text
        .split_whitespace()
        .max_by_key(|word| word.chars().count());
    let longest: String = longest.unwrap_or("nothing").chars().take(60).collect();
    let pick = |from: [&'static str; 4]| from[n.unsigned_abs() as usize % from.len()];
    let reply = format!(
        "{} You wrote {count} words, and the longest of them was {longest}. {}",
        pick(OPENINGS),
        pick(ENDINGS),
    );
    reply.split(' ').map(str::to_owned).collect()
}
