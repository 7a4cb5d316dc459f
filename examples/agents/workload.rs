//! What a chat server does with its database: the schema, and one turn of a conversation.
//! It does not know where connections come from.

use leasepool::rusqlite::{Connection, Result};

/// Sessions, their messages, and a full-text index that triggers keep.
pub(crate) fn set_up(conn: &Connection) -> Result<()> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS sessions (
             id            INTEGER PRIMARY KEY,
             agent         TEXT NOT NULL UNIQUE,
             created_at    INTEGER NOT NULL DEFAULT (unixepoch()),
             last_seen_at  INTEGER NOT NULL DEFAULT (unixepoch())
         ) STRICT;
         CREATE TABLE IF NOT EXISTS messages (
             id          INTEGER PRIMARY KEY,
             session_id  INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
             role        TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
             body        TEXT NOT NULL,
             created_at  INTEGER NOT NULL DEFAULT (unixepoch())
         ) STRICT;
         CREATE INDEX IF NOT EXISTS messages_by_session ON messages (session_id, id);
         CREATE VIRTUAL TABLE IF NOT EXISTS message_search USING fts5 (
             session_id, body, content = 'messages', content_rowid = 'id'
         );
         CREATE TRIGGER IF NOT EXISTS messages_inserted AFTER INSERT ON messages BEGIN
             INSERT INTO message_search (rowid, session_id, body)
             VALUES (new.id, new.session_id, new.body);
         END;
         CREATE TRIGGER IF NOT EXISTS messages_deleted AFTER DELETE ON messages BEGIN
             INSERT INTO message_search (message_search, rowid, session_id, body)
             VALUES ('delete', old.id, old.session_id, old.body);
         END;
         CREATE TRIGGER IF NOT EXISTS messages_updated AFTER UPDATE ON messages BEGIN
             INSERT INTO message_search (message_search, rowid, session_id, body)
             VALUES ('delete', old.id, old.session_id, old.body);
             INSERT INTO message_search (rowid, session_id, body)
             VALUES (new.id, new.session_id, new.body);
         END;",
    )
}

/// An agent's way to the database.
pub(crate) trait Access {
    type Error;

    /// Runs `work` in a transaction that writes, and returns once that is committed.
    fn write<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Self::Error>;

    fn read<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T>,
    ) -> std::result::Result<T, Self::Error>;
}

/// One turn: what is said, what is answered, and what is looked for, if anything.
pub(crate) struct Turn {
    pub(crate) agent: String,
    pub(crate) message: String,
    pub(crate) reply: String,
    pub(crate) search: Option<String>,
}

impl Turn {
    /// Takes the turn. `acknowledged` is told of every row as soon as it is committed.
    pub(crate) fn take<A: Access>(
        self,
        mut access: A,
        acknowledged: impl Fn(),
    ) -> std::result::Result<(), A::Error> {
        let agent = self.agent.clone();
        let session = access.write(move |conn| append(conn, &agent, "user", &self.message))?;
        acknowledged();
        access.read(|conn| {
            history(conn, session)?;
            if let Some(word) = &self.search {
                search(conn, session, word)?;
            }
            Ok(())
        })?;
        access.write(move |conn| append(conn, &self.agent, "assistant", &self.reply))?;
        acknowledged();
        Ok(())
    }
}

fn append(conn: &Connection, agent: &str, role: &str, body: &str) -> Result<i64> {
    let session = conn
        .prepare_cached(
            "INSERT INTO sessions (agent) VALUES (?1)
             ON CONFLICT (agent) DO UPDATE SET last_seen_at = unixepoch()
             RETURNING id",
        )?
        .query_row([agent], |row| row.get(0))?;
    conn.prepare_cached("INSERT INTO messages (session_id, role, body) VALUES (?1, ?2, ?3)")?
        .execute((session, role, body))?;
    Ok(session)
}

/// The last twenty messages, the oldest first.
fn history(conn: &Connection, session: i64) -> Result<Vec<(String, String)>> {
    let mut messages = conn
        .prepare_cached(
            "SELECT role, body FROM messages WHERE session_id = ?1 ORDER BY id DESC LIMIT 20",
        )?
        .query_map([session], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<_>>>()?;
    messages.reverse();
    Ok(messages)
}

fn search(conn: &Connection, session: i64, word: &str) -> Result<Vec<i64>> {
    let query = format!(
        "session_id : {session} AND body : \"{}\"",
        word.replace('"', "")
    );
    conn.prepare_cached(
        "SELECT rowid FROM message_search WHERE message_search MATCH ?1 ORDER BY rank LIMIT 10",
    )?
    .query_map([query], |row| row.get(0))?
    .collect()
}

/// How many messages there are.
pub(crate) fn count(conn: &Connection) -> Result<u64> {
    let rows: i64 = conn.query_row("SELECT count(*) FROM messages", [], |row| row.get(0))?;
    Ok(rows.unsigned_abs())
}

/// What SQLite says of the file and of the index.
pub(crate) fn integrity(conn: &Connection) -> Result<String> {
    conn.execute_batch("INSERT INTO message_search (message_search) VALUES ('integrity-check')")?;
    conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
}
