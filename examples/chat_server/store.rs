//! The SQL: sessions, messages, and a full-text index of them.
//! It knows no HTTP and no pool, and begins no transaction: what writes is called within one.

use leasepool::rusqlite::{Connection, Result};
use serde::Serialize;

/// The longest list that is returned.
pub(crate) const LONGEST_LIST: i64 = 100;

#[derive(Serialize)]
pub(crate) struct Message {
    pub(crate) id: i64,
    pub(crate) author: String,
    pub(crate) text: String,
    /// Seconds since 1970.
    pub(crate) at: i64,
}

#[derive(Serialize)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) messages: i64,
    pub(crate) last_at: i64,
}

#[derive(Serialize)]
pub(crate) struct Found {
    pub(crate) session: String,
    pub(crate) id: i64,
    pub(crate) snippet: String,
}

pub(crate) fn set_up(connection: &mut Connection) -> Result<()> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS session (
             id TEXT PRIMARY KEY,
             messages INTEGER NOT NULL,
             last_at INTEGER NOT NULL
         );
         CREATE INDEX IF NOT EXISTS session_last ON session (last_at DESC, id);
         CREATE TABLE IF NOT EXISTS message (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             session TEXT NOT NULL,
             author TEXT NOT NULL,
             text TEXT NOT NULL,
             at INTEGER NOT NULL
         );
         CREATE INDEX IF NOT EXISTS message_session ON message (session, id);
         CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (text, content = message, content_rowid = id);
         CREATE TRIGGER IF NOT EXISTS message_added AFTER INSERT ON message BEGIN
             INSERT INTO words (rowid, text) VALUES (new.id, new.text);
         END;
         CREATE TRIGGER IF NOT EXISTS message_removed AFTER DELETE ON message BEGIN
             INSERT INTO words (words, rowid, text) VALUES ('delete', old.id, old.text);
         END;",
    )
}

/// Adds a message, and its session if that is new. Returns the message's id.
pub(crate) fn add(connection: &Connection, session: &str, author: &str, text: &str) -> Result<i64> {
    connection
        .prepare_cached(
            "INSERT INTO session VALUES (?1, 1, unixepoch())
             ON CONFLICT (id) DO UPDATE SET messages = messages + 1, last_at = unixepoch()",
        )?
        .execute([session])?;
    connection
        .prepare_cached(
            "INSERT INTO message (session, author, text, at) VALUES (?1, ?2, ?3, unixepoch())
             RETURNING id",
        )?
        .query_row([session, author, text], |row| row.get(0))
}

/// Adds the reply, unless the session has been deleted meanwhile.
pub(crate) fn add_reply(connection: &Connection, session: &str, text: &str) -> Result<Option<i64>> {
    let known: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM session WHERE id = ?1)")?
        .query_row([session], |row| row.get(0))?;
    match known {
        true => add(connection, session, "server", text).map(Some),
        false => Ok(None),
    }
}

/// The last messages before one, the oldest first.
pub(crate) fn history(
    connection: &Connection,
    session: &str,
    before: i64,
    limit: i64,
) -> Result<Vec<Message>> {
    let mut select = connection.prepare_cached(
        "SELECT id, author, text, at FROM message
         WHERE session = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3",
    )?;
    let messages = select.query_map((session, before, limit), |row| {
        Ok(Message {
            id: row.get(0)?,
            author: row.get(1)?,
            text: row.get(2)?,
            at: row.get(3)?,
        })
    })?;
    let mut messages: Vec<_> = messages.collect::<Result<_>>()?;
    messages.reverse();
    Ok(messages)
}

/// Sessions, the latest first.
pub(crate) fn sessions(connection: &Connection, offset: i64, limit: i64) -> Result<Vec<Session>> {
    let mut select = connection.prepare_cached(
        "SELECT id, messages, last_at FROM session ORDER BY last_at DESC, id LIMIT ?1 OFFSET ?2",
    )?;
    let sessions = select.query_map((limit, offset), |row| {
        Ok(Session {
            id: row.get(0)?,
            messages: row.get(1)?,
            last_at: row.get(2)?,
        })
    })?;
    sessions.collect()
}

/// The latest messages that have all the words of a query. Not the best first: that would read and sort
/// all that match, and so cost more with each message that is ever sent.
pub(crate) fn search(connection: &Connection, query: &str) -> Result<Vec<Found>> {
    let query = quoted(query);
    if query.is_empty() {
        return Ok(Vec::new());
    }
    let mut select = connection.prepare_cached(
        "SELECT message.session, message.id, snippet(words, 0, '', '', '…', 12)
         FROM words JOIN message ON message.id = words.rowid
         WHERE words MATCH ?1 ORDER BY words.rowid DESC LIMIT 50",
    )?;
    let found = select.query_map([query], |row| {
        Ok(Found {
            session: row.get(0)?,
            id: row.get(1)?,
            snippet: row.get(2)?,
        })
    })?;
    found.collect()
}

/// Each word as a string of FTS5's, so that nothing in it is syntax.
fn quoted(query: &str) -> String {
    let words = query.split_whitespace().take(16);
    let words = words.map(|word| format!("\"{}\"", word.replace('"', "\"\"")));
    words.collect::<Vec<_>>().join(" ")
}

/// Whether there was such a session.
pub(crate) fn delete(connection: &Connection, session: &str) -> Result<bool> {
    connection.execute("DELETE FROM message WHERE session = ?1", [session])?;
    let deleted = connection.execute("DELETE FROM session WHERE id = ?1", [session])?;
    Ok(deleted > 0)
}
