//! The name of an agent's file: the agent's id, encoded so that it can be decoded, stays in its folder, and is unique, also
//! where file names do not distinguish capitals from small letters.
//! It touches no file.
//!
//! Small letters, digits, `-` and `_` stand for themselves. Every other byte of the id in UTF-8, capitals
//! included, is written as `%` and two small hexadecimal digits. `.db` follows.

use crate::error::Error;

const SUFFIX: &str = ".db";
/// The longest suffix that SQLite adds to the name of a database.
const LONGEST_SUFFIX: usize = "-journal".len();
/// The longest name that file systems allow, in bytes.
const LONGEST_NAME: usize = 255;
/// Names that are devices on some systems, with any suffix.
const RESERVED: [&str; 4] = ["con", "prn", "aux", "nul"];
const RESERVED_WITH_DIGIT: [&str; 2] = ["com", "lpt"];

/// The file name for an agent.
pub(super) fn encode(agent: &str) -> Result<String, Error> {
    let mut name = String::with_capacity(agent.len() + SUFFIX.len());
    for byte in agent.bytes() {
        if is_plain(byte) {
            name.push(char::from(byte));
        } else {
            name.push('%');
            for digit in [byte >> 4, byte & 15] {
                name.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
    }
    let reason = if is_reserved(&name) {
        "it is the name of a device on some systems"
    } else if name.len() + SUFFIX.len() + LONGEST_SUFFIX > LONGEST_NAME {
        "it is too long for the name of a file"
    } else {
        name.push_str(SUFFIX);
        return Ok(name);
    };
    Err(Error::InvalidAgent { reason })
}

/// The agent of a file; `None` if the file is no agent's.
pub(super) fn decode(name: &str) -> Option<String> {
    let encoded = name.strip_suffix(SUFFIX)?;
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            plain => plain,
        });
    }
    let agent = String::from_utf8(bytes).ok()?;
    // Only names that `encode` would write: each agent has one file.
    (!agent.is_empty() && encode(&agent).is_ok_and(|again| again == name)).then_some(agent)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
}

fn is_reserved(name: &str) -> bool {
    let numbered = name.len() == 4
        && name.ends_with(|c: char| c.is_ascii_digit())
        && RESERVED_WITH_DIGIT
            .iter()
            .any(|reserved| name.starts_with(reserved));
    numbered || RESERVED.contains(&name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_ids_are_readable() {
        assert_eq!(encode("session-42_a").unwrap(), "session-42_a.db");
        assert_eq!(encode("Alice").unwrap(), "%41lice.db");
        assert_eq!(encode("../x").unwrap(), "%2e%2e%2fx.db");
        assert_eq!(encode("é").unwrap(), "%c3%a9.db");
    }

    #[test]
    fn what_cannot_be_a_file_is_refused() {
        for id in ["con", "nul", "aux", "prn", "com1", "lpt9"] {
            assert!(encode(id).is_err(), "{id}");
        }
        // With capitals, they are encoded differently.
        assert_eq!(encode("NUL").unwrap(), "%4e%55%4c.db");
        assert!(encode(&"a".repeat(244)).is_ok());
        assert!(encode(&"a".repeat(245)).is_err());
        assert!(encode(&"A".repeat(82)).is_err());
    }

    #[test]
    fn what_we_would_not_write_is_no_agents() {
        for name in [
            "a",
            "A.db",
            "%41.db-wal",
            "%4A.db",
            "%61.db",
            "%c3.db",
            "%4.db",
            ".db",
            "nul.db",
        ] {
            assert_eq!(decode(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn distinct_ids_have_distinct_files_within_the_folder(
            ids in prop::collection::hash_set("(\\PC|[a-zA-Z./\\\\%~: \u{0}-]){1,24}", 1..24)
        ) {
            let mut files = HashMap::new();
            for id in ids {
                let Ok(name) = encode(&id) else { continue };
                prop_assert_eq!(decode(&name), Some(id.clone()));
                let plain = name.bytes().all(|b| is_plain(b) || matches!(b, b'%' | b'.'));
                prop_assert!(plain && !name.starts_with('.'));
                // The way a file system compares names that does not distinguish capitals.
                let other = files.insert(name.to_uppercase(), id.clone());
                prop_assert_eq!(other, None);
            }
        }
    }
}
