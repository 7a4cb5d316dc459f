//! Where messages come from: generated, or read from a file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use rand::Rng;
use rand::rngs::SmallRng;

/// Longest message taken from a file, in bytes.
const LONGEST: usize = 64 * 1024;
/// Most messages taken from a file.
const MOST: usize = 1_000_000;
/// How many bad lines are told one by one.
const TOLD: usize = 10;

#[derive(Default)]
pub(crate) struct Transcript {
    messages: Vec<String>,
    replies: Vec<String>,
    bad: Vec<String>,
    bad_lines: usize,
}

impl Transcript {
    /// # Errors
    /// If the file cannot be read, or has no message.
    pub(crate) fn read(path: &Path) -> Result<Transcript, String> {
        let unreadable = |error| format!("transcript {}: {error}", path.display());
        let file = File::open(path).map_err(unreadable)?;
        let mut reader = BufReader::new(file);
        let mut transcript = Transcript::default();
        let mut json = None;
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            // One byte more than may be: a line that long is told as too long, and not kept.
            let limit = LONGEST as u64 * 2 + 1;
            let read = reader
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut line)
                .map_err(unreadable)?;
            if read == 0 || transcript.messages.len() + transcript.replies.len() == MOST {
                break;
            }
            if read as u64 == limit && line.last() != Some(&b'\n') {
                reader.skip_until(b'\n').map_err(unreadable)?;
            }
            let Ok(text) = str::from_utf8(&line).map(str::trim) else {
                transcript.reject(path, number, "not UTF-8");
                continue;
            };
            if text.is_empty() {
                continue;
            }
            let json = *json.get_or_insert(text.starts_with('{'));
            if let Err(why) = transcript.add(text, json) {
                transcript.reject(path, number, why);
            }
        }
        if transcript.messages.is_empty() {
            return Err(match transcript.bad.first() {
                Some(bad) => format!("transcript has no usable message; {bad}"),
                None => format!("transcript {} has no message", path.display()),
            });
        }
        Ok(transcript)
    }

    fn add(&mut self, line: &str, json: bool) -> Result<(), &'static str> {
        let (reply, text) = if json {
            let value: serde_json::Value =
                serde_json::from_str(line).map_err(|_| "not a line of JSON")?;
            let content = value["content"].as_str().ok_or("no text in \"content\"")?;
            let reply = match value["role"].as_str() {
                Some("user") => false,
                Some("assistant") => true,
                Some(_) => return Err("\"role\" is neither \"user\" nor \"assistant\""),
                None => return Err("no \"role\""),
            };
            (reply, content.to_owned())
        } else {
            (false, line.to_owned())
        };
        if text.len() > LONGEST {
            return Err("longer than 64 KiB");
        }
        match reply {
            true => self.replies.push(text),
            false => self.messages.push(text),
        }
        Ok(())
    }

    fn reject(&mut self, path: &Path, line: usize, why: &str) {
        self.bad_lines += 1;
        if self.bad.len() < TOLD {
            self.bad.push(format!("{}:{line}: {why}", path.display()));
        }
    }

    /// Tells which lines were left out.
    pub(crate) fn tell_bad_lines(&self) {
        for bad in &self.bad {
            eprintln!("left out {bad}");
        }
        if self.bad_lines > self.bad.len() {
            eprintln!("left out {} more", self.bad_lines - self.bad.len());
        }
    }

    /// What the user says, and what the answer is.
    pub(crate) fn draw(&self, rng: &mut SmallRng) -> (String, String) {
        let message = match self.messages.len() {
            0 => sentence(rng),
            n => self.messages[rng.random_range(0..n)].clone(),
        };
        let reply = match self.replies.len() {
            0 => sentence(rng),
            n => self.replies[rng.random_range(0..n)].clone(),
        };
        (message, reply)
    }
}

/// A word to look for in what was said.
pub(crate) fn word_of(message: &str) -> Option<&str> {
    message
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .max_by_key(|word| word.len())
}

fn sentence(rng: &mut SmallRng) -> String {
    const WORDS: [&str; 48] = [
        "about", "answer", "because", "before", "book", "bridge", "cloud", "coffee", "could",
        "every", "flight", "garden", "green", "house", "invoice", "kettle", "letter", "light",
        "little", "machine", "market", "maybe", "meeting", "morning", "never", "number", "open",
        "order", "paper", "people", "please", "question", "quiet", "river", "schedule", "should",
        "station", "story", "summer", "table", "ticket", "today", "tomorrow", "train", "travel",
        "water", "weather", "window",
    ];
    let mut text = String::new();
    for _ in 0..rng.random_range(6..30) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
    }
    text
}
