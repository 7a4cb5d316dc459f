//! Reset: removing every trace of one agent from a connection before another agent gets it.
//! What it cannot remove it reports, so that the connection is closed and opened anew.
//!
//! How the pool detects each trace with SQLite, and what it does then:
//!
//! | trace | detected by | then |
//! |---|---|---|
//! | open transaction | `sqlite3_get_autocommit` | rolled back, already at the end of the lease |
//! | statement still running | `sqlite3_stmt_busy` over `sqlite3_next_stmt` | discard |
//! | temporary tables, views, triggers, rows in them | the authorizer: any write to `temp` | discard |
//! | the same by the backup API or a blob handle, which the authorizer does not see | reading the temporary schema, and the rows of `on_open`'s temporary tables | discard |
//! | attached or detached databases | the authorizer: ATTACH, DETACH | discard |
//! | changed pragmas | the authorizer: a PRAGMA with a value, except those that only read or only change the file | discard |
//! | loaded extensions | the authorizer: the function `load_extension` | discard |
//! | permission to load extensions | nothing | taken back |
//! | heap limits, directories for temporary files, which belong to the process | the authorizer | refused |
//! | exclusive locking, another journal mode | the authorizer | the connection is closed as the lease ends |
//! | statements that `on_open` has cached | nothing | forgotten before the first lease |
//! | the authorizer itself replaced | the pool's authorizer being dropped | discard |
//! | update hook, progress handler | nothing: removing one costs nanoseconds | removed |
//! | commit and rollback hook | the pool's hook being dropped | removed; the pool's own put back |
//! | trace, WAL hook, busy handler | nothing: setting them costs nanoseconds | removed; the pool's own put back, also after `on_open` |
//! | limits, `sqlite3_db_config` switches | reading them | put back |
//! | size of the statement cache, default behaviour of transactions | nothing | put back |
//! | `last_insert_rowid()` | reading it | overwritten by a row in a temporary table of the pool |
//! | the whole database replaced (`deserialize`), or the connection (`mem::swap`) | the address of `sqlite3_db_filename`, one for each connection | discard |
//! | SQL functions, collations, modules | listing them, and for one that replaces another, a statement of the pool that SQLite had to prepare again | discard |
//!
//! The last check costs about 50 µs, and runs only in programs that can register such things: where rusqlite
//! is compiled with its feature `functions` or `collation` (which any crate of the program may enable), or
//! this crate with its feature `vtab`. `total_changes()` goes on counting; only differences of it mean
//! anything. Not detected: what an extension does that was loaded by `unsafe` code, and the hook that
//! rusqlite's feature `preupdate_hook` adds.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Action;
use rusqlite::limits::Limit;
use rusqlite::{Connection, TransactionBehavior};

use super::absent::{self, ABSENT};
use super::change_tracker::ChangeTracker;
use super::connection;
use super::read;
use super::registered::Registered;
use super::temporary::Temporary;
use super::versions;
use super::wal;
use super::{Checkpoints, Settings};
use crate::core::backend::Fate;

/// The state of a connection when it had just been opened.
pub(super) struct Baseline {
    pub(super) watch: Arc<ChangeTracker>,
    /// `on_open` replaced hooks. Hooks cannot be read back, so no reset can restore them.
    hooked_by_on_open: bool,
    busy_timeout: Duration,
    transaction_behavior: TransactionBehavior,
    statement_cache: usize,
    limits: Vec<(Limit, i32)>,
    switches: Vec<(DbConfig, bool)>,
    autocheckpoint: AutoCheckpoint,
    wal_hook: wal::Hook,
    /// `on_open` set a WAL hook, and the pool replaced it.
    replaced_wal_hook: bool,
    identity: Option<usize>,
    registered: Registered,
    temporary: Temporary,
    has_rowid_table: bool,
    /// `PRAGMA query_only` is on for all borrowers.
    pub(super) query_only: bool,
}

/// What keeps the log short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AutoCheckpoint {
    /// The pool, by the notes of its WAL hook; or another process.
    Pool,
    /// SQLite itself, from this many pages on, because a pragma asked for it; below one: never.
    Sqlite(i32),
}

const LIMITS: [Limit; 13] = [
    Limit::SQLITE_LIMIT_LENGTH,
    Limit::SQLITE_LIMIT_SQL_LENGTH,
    Limit::SQLITE_LIMIT_COLUMN,
    Limit::SQLITE_LIMIT_EXPR_DEPTH,
    Limit::SQLITE_LIMIT_COMPOUND_SELECT,
    Limit::SQLITE_LIMIT_VDBE_OP,
    Limit::SQLITE_LIMIT_FUNCTION_ARG,
    Limit::SQLITE_LIMIT_ATTACHED,
    Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH,
    Limit::SQLITE_LIMIT_VARIABLE_NUMBER,
    Limit::SQLITE_LIMIT_TRIGGER_DEPTH,
    Limit::SQLITE_LIMIT_WORKER_THREADS,
    Limit::SQLITE_LIMIT_PARSER_DEPTH,
];

/// All switches of a connection. A switch that SQLite is too old for returns an error, and is left out. So is
/// one that this rusqlite has no name for.
fn switches() -> impl Iterator<Item = DbConfig> {
    #[allow(unused_imports, reason = "unused where rusqlite has all of them")]
    use super::absent::Switches;
    let newer = [
        absent::found(DbConfig::SQLITE_DBCONFIG_STMT_SCANSTATUS),
        absent::found(DbConfig::SQLITE_DBCONFIG_REVERSE_SCANORDER),
        absent::found(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE),
        absent::found(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE),
        absent::found(DbConfig::SQLITE_DBCONFIG_ENABLE_COMMENTS),
    ];
    SWITCHES.iter().copied().chain(newer.into_iter().flatten())
}

const SWITCHES: [DbConfig; 15] = [
    DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY,
    DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER,
    DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER,
    DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE,
    DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG,
    DbConfig::SQLITE_DBCONFIG_TRIGGER_EQP,
    DbConfig::SQLITE_DBCONFIG_RESET_DATABASE,
    DbConfig::SQLITE_DBCONFIG_DEFENSIVE,
    DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA,
    DbConfig::SQLITE_DBCONFIG_LEGACY_ALTER_TABLE,
    DbConfig::SQLITE_DBCONFIG_DQS_DML,
    DbConfig::SQLITE_DBCONFIG_DQS_DDL,
    DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW,
    DbConfig::SQLITE_DBCONFIG_LEGACY_FILE_FORMAT,
    DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA,
];

impl Baseline {
    /// Takes the state of a connection after its callbacks, and removes the marker hooks.
    pub(super) fn of(
        connection: &mut Connection,
        settings: &Settings,
        watch: Arc<ChangeTracker>,
    ) -> rusqlite::Result<Baseline> {
        let hooked_by_on_open = watch.is_hooked();
        if !hooked_by_on_open {
            remove_marks(connection)?;
        }
        let _quiet = watch.quiet();
        let asked = watch.autocheckpoint();
        // Otherwise the connection is as the pool itself has made it.
        let is_customised = settings.is_customised();
        let now: i32 = match is_customised {
            true => connection.pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0))?,
            false => AUTOCHECKPOINT,
        };
        let autocheckpoint = match (settings.checkpoints, asked, now) {
            (Checkpoints::External { .. }, _, _) => AutoCheckpoint::Pool,
            (Checkpoints::Pool, Some(pages), _) => AutoCheckpoint::Sqlite(pages),
            // Another WAL hook makes the pragma read zero.
            (Checkpoints::Pool, None, 0 | AUTOCHECKPOINT) => AutoCheckpoint::Pool,
            (Checkpoints::Pool, None, pages) => AutoCheckpoint::Sqlite(pages),
        };
        let wal_hook = match settings.checkpoints {
            Checkpoints::Pool => wal::hook(settings.wal_size),
            Checkpoints::External { emergency } => {
                // Undoes what `on_open` may have changed about this.
                connection::keep_log(connection)?;
                wal::emergency_hook(emergency)
            }
        };
        // Statements that `on_open` has cached would run for agents unseen.
        connection.flush_prepared_statement_cache();
        let baseline = Baseline {
            hooked_by_on_open,
            busy_timeout: settings.busy_timeout,
            // No pragma changes it.
            transaction_behavior: match settings.has_callbacks() {
                true => transaction_behavior(connection, &watch),
                false => TransactionBehavior::Deferred,
            },
            statement_cache: settings.statement_cache,
            limits: LIMITS
                .iter()
                .filter_map(|&limit| Some((limit, connection.limit(limit).ok()?)))
                .filter(|(_, value)| *value >= 0)
                .collect(),
            switches: switches()
                .filter_map(|switch| Some((switch, connection.db_config(switch).ok()?)))
                .collect(),
            autocheckpoint,
            wal_hook,
            replaced_wal_hook: autocheckpoint == AutoCheckpoint::Pool
                && settings.checkpoints == Checkpoints::Pool
                && now == 0,
            identity: identity(connection),
            registered: Registered::on(connection)?,
            temporary: Temporary::on(connection)?,
            has_rowid_table: false,
            query_only: is_customised && read::query_only(connection)?,
            watch: Arc::clone(&watch),
        };
        // Replaces a WAL hook of `on_open`.
        baseline.restore_wal_hook(connection)?;
        watch.forget();
        Ok(baseline)
    }

    /// From now on the connection only reads, whatever its borrowers do.
    pub(super) fn only_read(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let _quiet = self.watch.quiet();
        read::set_query_only(connection, true)?;
        self.query_only = true;
        self.watch.only_read();
        Ok(())
    }

    /// Restores the connection's first state, or reports that this is impossible. The cheap checks come
    /// first, those that run SQL last. `borrowed_mutably`: a borrower had `&mut` access.
    pub(super) fn restore(
        &mut self,
        connection: &mut Connection,
        borrowed_mutably: bool,
    ) -> rusqlite::Result<Fate> {
        if self.hooked_by_on_open || self.is_spoiled(connection) {
            return Ok(Fate::Discard);
        }
        let _quiet = self.watch.quiet();
        if !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK")?;
        }
        connection.busy_timeout(self.busy_timeout)?;
        self.restore_wal_hook(connection)?;
        self.clean(connection, borrowed_mutably)
    }

    /// Whether a borrower did something that cannot be undone.
    fn is_spoiled(&self, connection: &Connection) -> bool {
        self.watch.is_touched() || identity(connection) != self.identity || connection.is_busy()
    }

    /// Removes what another agent would see, inside a transaction or outside.
    fn clean(
        &mut self,
        connection: &mut Connection,
        borrowed_mutably: bool,
    ) -> rusqlite::Result<Fate> {
        self.restore_settings(connection)?;
        if self.registered.check(connection)? == Fate::Discard {
            return Ok(Fate::Discard);
        }
        if self.temporary.check(connection, borrowed_mutably)? == Fate::Discard {
            return Ok(Fate::Discard);
        }
        self.forget_rowid(connection)?;
        Ok(Fate::Reuse)
    }

    /// Removes a borrower's hooks by setting others.
    fn restore_hooks(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        if !self.hooked_by_on_open {
            remove_marks(connection)?;
            self.watch.guard_transactions(connection)?;
        }
        versions::remove_trace(connection)
    }

    /// Restores what can simply be written again.
    fn restore_settings(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        self.restore_hooks(connection)?;
        connection.set_transaction_behavior(self.transaction_behavior);
        for &(limit, value) in &self.limits {
            if connection.limit(limit)? != value {
                connection.set_limit(limit, value)?;
            }
        }
        for &(switch, value) in &self.switches {
            if connection.db_config(switch)? != value {
                connection.set_db_config(switch, value)?;
            }
        }
        connection.set_prepared_statement_cache_capacity(self.statement_cache);
        {
            #[allow(unused_imports, reason = "unused where rusqlite has the method")]
            use super::absent::Extensions;
            connection.load_extension_disable()?;
        }
        Ok(())
    }

    /// Inserting a row is the only way to change `last_insert_rowid()`.
    fn forget_rowid(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        // On a connection that only reads, it has not changed.
        if self.query_only || connection.last_insert_rowid() == 0 {
            return Ok(());
        }
        self.make_rowid_table(connection)?;
        let forget = "REPLACE INTO temp.leasepool_rowid (rowid) VALUES (0)";
        connection.prepare_cached(forget)?.execute([])?;
        Ok(())
    }

    /// Makes the table that overwrites the last rowid. Not within a transaction: there it could be rolled
    /// back, and SQLite would prepare all statements again.
    pub(super) fn make_rowid_table(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.has_rowid_table {
            return Ok(());
        }
        let _quiet = self.watch.quiet();
        connection.execute_batch("CREATE TEMP TABLE leasepool_rowid (x)")?;
        self.has_rowid_table = true;
        self.temporary.expect_change(connection)?;
        self.registered.expect_invalidation(connection)
    }

    /// SQLite runs its automatic checkpoints from a WAL hook, so removing an agent's hook removes them. The
    /// pool does not want them: it runs checkpoints on another connection, see [`wal`]. A pragma that asks
    /// for another number of pages gets SQLite's own.
    fn restore_wal_hook(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        match self.autocheckpoint {
            AutoCheckpoint::Pool => versions::set_wal_hook(connection, Some(self.wal_hook))?,
            AutoCheckpoint::Sqlite(never) if never <= 0 => {
                versions::set_wal_hook(connection, None)?
            }
            // Only SQLite's own hook accepts another number.
            AutoCheckpoint::Sqlite(pages) => {
                // So that what a borrower's held is dropped.
                versions::set_wal_hook(connection, None)?;
                let sql = format!("PRAGMA wal_autocheckpoint = {pages}");
                connection.prepare_cached(&sql)?.query_row([], |_| Ok(()))?;
            }
        }
        Ok(())
    }

    /// Removes what would disturb the next member of a group of writes.
    pub(super) fn begin_member(
        &self,
        connection: &mut Connection,
        hook: Option<wal::Hook>,
    ) -> rusqlite::Result<()> {
        self.restore_hooks(connection)?;
        connection.busy_timeout(Duration::ZERO)?;
        self.note_commits(connection, hook.unwrap_or(self.wal_hook))
    }

    /// Removes what a member of a group may have left and a member of another agent would see. `Discard`: it
    /// cannot be removed.
    pub(super) fn hand_on(&mut self, connection: &mut Connection) -> rusqlite::Result<Fate> {
        if self.is_spoiled(connection) {
            return Ok(Fate::Discard);
        }
        let _quiet = self.watch.quiet();
        self.clean(connection, false)
    }

    /// Forgets all prepared statements, on a connection that was just reset.
    pub(super) fn flush_statements(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        connection.flush_prepared_statement_cache();
        self.registered.expect_invalidation(connection)
    }

    /// Restores what a lease relies on.
    pub(super) fn end_group(&self, connection: &mut Connection) {
        // They fail only for a connection that is not owned, or without memory.
        let _ = connection.busy_timeout(self.busy_timeout);
        let _ = self.note_commits(connection, self.wal_hook);
    }

    /// Sets the WAL hook, unless a pragma asked for SQLite's own checkpoints.
    fn note_commits(&self, connection: &mut Connection, hook: wal::Hook) -> rusqlite::Result<()> {
        match self.counts_on_pool() {
            true => versions::set_wal_hook(connection, Some(hook)),
            false => Ok(()),
        }
    }

    /// Whether the pool's WAL hook is in force, unless a borrower has replaced it.
    pub(super) fn counts_on_pool(&self) -> bool {
        self.autocheckpoint == AutoCheckpoint::Pool
    }

    /// Whether `on_open` set a WAL hook, which the pool replaced.
    pub(super) fn replaced_wal_hook(&self) -> bool {
        self.replaced_wal_hook
    }
}

/// `SQLITE_DEFAULT_WAL_AUTOCHECKPOINT`, in pages.
const AUTOCHECKPOINT: i32 = 1000;

/// Removes hooks that borrowers may have set, except those that guard transactions.
fn remove_marks(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.update_hook(None::<fn(Action, &str, &str, i64)>)?;
    connection.progress_handler(0, None::<fn() -> bool>)?;
    Ok(())
}

/// How the connection begins transactions, found by beginning one.
fn transaction_behavior(
    connection: &Connection,
    watch: &Arc<ChangeTracker>,
) -> TransactionBehavior {
    #[allow(unused_imports, reason = "unused where rusqlite has the method")]
    use super::absent::States;
    match connection.unchecked_transaction() {
        // Where rusqlite does not compile this method, it does not export the type of the state either.
        Ok(transaction) => match connection.transaction_state(None::<&str>) {
            Ok(state) if format!("{state:?}") == "Write" => TransactionBehavior::Immediate,
            Ok(state) if format!("{state:?}") == ABSENT => {
                let _probe = watch.probe();
                let _ = watch.take_rolled_back();
                // The transaction has written nothing; but SQLite calls the commit hook only if it may write.
                drop(transaction.commit());
                match watch.take_rolled_back() {
                    true => TransactionBehavior::Immediate,
                    false => TransactionBehavior::Deferred,
                }
            }
            _ => TransactionBehavior::Deferred,
        },
        // Another connection writes: a deferred transaction would have begun.
        Err(_) => TransactionBehavior::Immediate,
    }
}

/// The address of the connection's main database name. Each connection has its own copy.
fn identity(connection: &Connection) -> Option<usize> {
    connection.path().map(|name| name.as_ptr().addr())
}
