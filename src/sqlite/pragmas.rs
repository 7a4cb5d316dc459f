//! The builder's pragmas: in which order a connection gets them, and whether each had an effect.
//! It knows none of the pool's own pragmas.

use std::io;

use rusqlite::Connection;
use rusqlite::types::Value;

use super::{Fault, Settings};

/// When to give a pragma.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Without it, SQLite cannot read the file. SQLCipher takes none of its other pragmas before it.
    Key,
    /// How the file is encrypted.
    Cipher,
    /// What SQLite decides when it writes the first page of a file. The page size must come before the first
    /// read.
    Encoding,
    PageSize,
    AutoVacuum,
    /// At any time.
    Later,
}

fn stage(name: &str) -> Stage {
    match name.to_ascii_lowercase().as_str() {
        "key" | "hexkey" | "textkey" => Stage::Key,
        "kdf_iter" | "fast_kdf_iter" => Stage::Cipher,
        cipher if cipher.starts_with("cipher") => Stage::Cipher,
        "encoding" => Stage::Encoding,
        "page_size" => Stage::PageSize,
        "auto_vacuum" => Stage::AutoVacuum,
        _ => Stage::Later,
    }
}

/// Gives the pragmas without which SQLite cannot read the file.
pub(super) fn unlock(connection: &Connection, settings: &Settings) -> Result<(), Fault> {
    let encrypts = |(name, _): &&(String, Value)| is_of_encryption(name);
    if let Some((name, _)) = settings.pragmas.iter().find(encrypts)
        && !can_encrypt(connection)
    {
        return Err(fault(format!(
            "the pragma {name} had no effect: this SQLite cannot encrypt; build with the feature `sqlcipher`"
        )));
    }
    give(connection, settings, Stage::Key)?;
    give(connection, settings, Stage::Cipher)
}

/// Gives the pragmas that count only until the first page of a file is written.
pub(super) fn begin_file(connection: &Connection, settings: &Settings) -> Result<(), Fault> {
    give(connection, settings, Stage::Encoding)?;
    give(connection, settings, Stage::PageSize)?;
    give(connection, settings, Stage::AutoVacuum)
}

/// Gives the rest, and checks that each pragma had an effect.
pub(super) fn finish(connection: &Connection, settings: &Settings) -> Result<(), Fault> {
    give(connection, settings, Stage::Later)?;
    for (name, value) in &settings.pragmas {
        check(connection, name, value)?;
    }
    Ok(())
}

fn give(connection: &Connection, settings: &Settings, wanted: Stage) -> Result<(), Fault> {
    for (name, value) in &settings.pragmas {
        if stage(name) != wanted || is_there(connection, name, value)? {
            continue;
        }
        // The error for a key would contain the whole statement.
        connection
            .pragma_update(None, name, value)
            .map_err(|error| match is_secret(name) {
                true => fault(format!("the pragma {name} failed")),
                false => error.into(),
            })?;
    }
    Ok(())
}

/// Whether a pragma that writes to the file would change nothing.
fn is_there(connection: &Connection, name: &str, value: &Value) -> Result<bool, Fault> {
    const WRITE: [&str; 4] = [
        "application_id",
        "auto_vacuum",
        "schema_version",
        "user_version",
    ];
    if !WRITE.iter().any(|write| name.eq_ignore_ascii_case(write)) {
        return Ok(false);
    }
    Ok(query(connection, name)?.is_some_and(|found| means(name, value, &found)))
}

fn query(connection: &Connection, name: &str) -> rusqlite::Result<Option<Value>> {
    match connection.pragma_query_value(None, name, |row| row.get(0)) {
        Ok(found) => Ok(Some(found)),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(error) => Err(error),
    }
}

/// SQLite reads a value that it does not understand as `OFF`. It ignores a pragma that comes too late
/// (`page_size` of an existing file) and one that it does not know. So the pool reads each pragma back.
fn check(connection: &Connection, name: &str, given: &Value) -> Result<(), Fault> {
    if is_secret(name) {
        return Ok(());
    }
    let found = match query(connection, name)? {
        Some(found) if means(name, given, &found) => return Ok(()),
        Some(found) => format!("it is {}", shown(&found)),
        None if is_of_encryption(name) || is_known(connection, name) => return Ok(()),
        None => "SQLite does not know it".to_owned(),
    };
    Err(fault(format!(
        "the pragma {name} = {} had no effect: {found}",
        shown(given)
    )))
}

/// Values that must not appear in a log.
fn is_secret(name: &str) -> bool {
    stage(name) == Stage::Key || name.eq_ignore_ascii_case("cipher_salt")
}

fn is_of_encryption(name: &str) -> bool {
    matches!(stage(name), Stage::Key | Stage::Cipher)
}

/// Whether SQLite was compiled with some kind of encryption.
fn can_encrypt(connection: &Connection) -> bool {
    let codec = "SELECT sqlite_compileoption_used('HAS_CODEC')";
    let has_codec = connection.query_row(codec, [], |row| row.get(0));
    has_codec.unwrap_or(false) || matches!(query(connection, "cipher_version"), Ok(Some(_)))
}

fn is_known(connection: &Connection, name: &str) -> bool {
    let listed = "SELECT count(*) FROM pragma_pragma_list WHERE name = lower(?1)";
    // Where SQLite has no such list, the pragma counts as known.
    connection
        .query_row(listed, [name], |row| row.get(0))
        .unwrap_or(true)
}

/// Whether a pragma that was given one value and then reads as the other took effect.
fn means(name: &str, given: &Value, found: &Value) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match (number(given), number(found)) {
        // It reads as a number of pages.
        (Some(given), Some(found)) if is("cache_spill") => (given == 0) == (found == 0),
        // Any negative number means zero.
        (Some(given), Some(found)) if is("wal_autocheckpoint") => given.max(0) == found,
        (Some(given), Some(found)) => {
            // A switch is on for any number but zero.
            given == found || (found == 1 && given != 0 && !is("auto_vacuum") && !is("threads"))
        }
        (None, None) => match (given, found) {
            (Value::Text(given), Value::Text(found)) => {
                let plain = |text: &str| text.to_ascii_lowercase().replace('-', "");
                let (given, found) = (plain(given), plain(found));
                // UTF-16 reads as one of two byte orders.
                given == found || (given == "utf16" && found.starts_with("utf16"))
            }
            (given, found) => given == found || matches!(found, Value::Null),
        },
        (Some(_), None) => matches!(found, Value::Null),
        (None, Some(_)) => false,
    }
}

fn number(value: &Value) -> Option<i64> {
    /// Words for numbers, of all pragmas. No word means different numbers in two pragmas.
    const WORDS: [(&str, i64); 12] = [
        ("off", 0),
        ("no", 0),
        ("false", 0),
        ("none", 0),
        ("on", 1),
        ("yes", 1),
        ("true", 1),
        ("full", 1),
        ("incremental", 2),
        ("fast", 2),
        ("memory", 2),
        ("extra", 3),
    ];
    match value {
        Value::Integer(number) => Some(*number),
        Value::Text(text) => {
            let word = WORDS
                .iter()
                .find(|(word, _)| text.eq_ignore_ascii_case(word));
            word.map(|(_, number)| *number)
                .or_else(|| text.parse().ok())
        }
        _ => None,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        other => format!("{other:?}"),
    }
}

fn fault(text: String) -> Fault {
    Box::new(io::Error::new(io::ErrorKind::InvalidInput, text))
}
