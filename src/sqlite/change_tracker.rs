//! ChangeTracker: sees, through the authorizer and hooks of a connection, what borrowers do to it.
//! In a lease it forbids nothing. In a group of writes it forbids whatever would affect more than the member's savepoint.
//! While a borrower works within a transaction of the pool, the commit hook lets nothing be committed, and the rollback
//! hook notes that the transaction is lost. Where borrowers may only read, the commit hook lets nothing be committed
//! either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::hooks::{Action, AuthAction, AuthContext, Authorization, TransactionOperation};

use super::wal;

/// Sees, through the authorizer and hooks of a connection, what borrowers do to it.
pub(super) struct ChangeTracker {
    /// The number of its connection. It is unique.
    number: u64,
    /// Another process runs the checkpoints: borrowers may not turn on SQLite's own.
    external: bool,
    /// The last value given to the pragma `wal_autocheckpoint`, or [`NOT_ASKED`].
    autocheckpoint: AtomicI64,
    touched: AtomicU32,
    mode: AtomicU8,
    /// A transaction of the pool was rolled back while a borrower worked in it.
    rolled_back: AtomicBool,
    /// Pragmas that borrowers may not set.
    fixed: &'static [&'static str],
    /// Borrowers may only read.
    only_reads: AtomicBool,
    /// The first thing that was forbidden since the last question, in words.
    refused: Mutex<Option<String>>,
}

/// The pragma was given no value: SQLite accepts none so large.
const NOT_ASKED: i64 = i64::MAX;

/// A borrower is at work: its changes are noted.
const WATCHING: u8 = 0;
/// The pool itself is at work: nothing is noted.
const QUIET: u8 = 1;
/// A member of a group of writes is at work: statements that would outlive or end its savepoint are
/// forbidden.
const FENCING: u8 = 2;
/// A lease's borrower is at work in a transaction that the pool will commit: it may do anything but end the
/// transaction.
const GUARDING: u8 = 3;
/// The pool checks whether a transaction may write: one that may calls the commit hook, and is not committed.
const PROBING: u8 = 4;
/// A borrower is at work in a snapshot of the pool. It may only read, and may not end the snapshot.
const READING: u8 = 5;

/// The name of a member's savepoint. A member may roll back to it, but not end or hide it.
pub(super) const MEMBER: &str = "leasepool_member";

/// The borrower did something that a reset cannot undo.
const CHANGED: u32 = 1;
/// The pool's authorizer was replaced: later changes are not seen.
const BLIND: u32 = 2;
/// One of the hooks that were set before `on_open` was replaced.
const HOOKED: u32 = 4;
/// The pool's commit hook or rollback hook was replaced: it can be set again.
const UNGUARDED: u32 = 8;
/// A pragma was given that keeps others from the file as long as the connection is open.
const SHUTS_OUT: u32 = 32;
/// A statement was prepared that begins or ends a transaction or a savepoint: it may be cached.
const TRANSACTIONS: u32 = 16;

/// Sets its bit when the closure that owns it is dropped.
struct Tripwire(Arc<ChangeTracker>, u32);

/// Keeps a tracker in another mode until it is dropped, and then restores the previous one.
pub(super) struct ModeGuard(Arc<ChangeTracker>, u8);

impl ChangeTracker {
    /// Watches `connection` from now on, and sets marker hooks, which show whether `on_open` replaces any.
    /// Pragmas with these names are refused.
    pub(super) fn install(
        connection: &mut Connection,
        fixed: &'static [&'static str],
        external: bool,
    ) -> rusqlite::Result<Arc<ChangeTracker>> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let watch = Arc::new(ChangeTracker {
            number: NUMBER.fetch_add(1, Relaxed),
            external,
            autocheckpoint: AtomicI64::new(NOT_ASKED),
            touched: AtomicU32::new(UNGUARDED),
            mode: AtomicU8::new(WATCHING),
            rolled_back: AtomicBool::new(false),
            fixed,
            only_reads: AtomicBool::new(false),
            refused: Mutex::default(),
        });
        let tripwire = |bit| Tripwire(Arc::clone(&watch), bit);
        let authorizer = tripwire(BLIND);
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            authorizer.0.see(&context)
        }))?;
        watch.guard_transactions(connection)?;
        let hook = tripwire(HOOKED);
        connection.update_hook(Some(move |_: Action, _: &str, _: &str, _: i64| {
            hook.is_nothing();
        }))?;
        let hook = tripwire(HOOKED);
        connection.progress_handler(i32::MAX, Some(move || hook.is_nothing()))?;
        Ok(watch)
    }

    /// Sets the hooks that protect the pool's transactions, if a borrower or callback has replaced them.
    pub(super) fn guard_transactions(
        self: &Arc<Self>,
        connection: &mut Connection,
    ) -> rusqlite::Result<()> {
        if !self.is_unguarded() {
            return Ok(());
        }
        let commit = Tripwire(Arc::clone(self), UNGUARDED);
        connection.commit_hook(Some(move || commit.0.forbids_commit()))?;
        let rollback = Tripwire(Arc::clone(self), UNGUARDED);
        connection.rollback_hook(Some(move || rollback.0.note_rollback()))?;
        self.touched.fetch_and(!UNGUARDED, Relaxed);
        Ok(())
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The last value given to the pragma `wal_autocheckpoint`, if any.
    pub(super) fn autocheckpoint(&self) -> Option<i32> {
        i32::try_from(self.autocheckpoint.load(Relaxed)).ok()
    }

    /// Whether one of these hooks was replaced.
    pub(super) fn is_unguarded(&self) -> bool {
        self.touched.load(Relaxed) & UNGUARDED != 0
    }

    /// Whether to forbid this commit: SQLite asks while a borrower works in a transaction of the pool. SQLite
    /// then rolls back.
    fn forbids_commit(&self) -> bool {
        wal::committing(self.number);
        match self.mode.load(Relaxed) {
            QUIET => false,
            FENCING | GUARDING | PROBING => {
                self.rolled_back.store(true, Relaxed);
                true
            }
            READING => true,
            _ => self.only_reads(),
        }
    }

    /// From now on borrowers may only read.
    pub(super) fn only_read(&self) {
        self.only_reads.store(true, Relaxed);
    }

    pub(super) fn only_reads(&self) -> bool {
        self.only_reads.load(Relaxed)
    }

    fn note_rollback(&self) {
        if matches!(self.mode.load(Relaxed), FENCING | GUARDING | PROBING) {
            self.rolled_back.store(true, Relaxed);
        }
    }

    /// Whether a transaction was rolled back, since the last call, while a borrower worked in it.
    pub(super) fn take_rolled_back(&self) -> bool {
        self.rolled_back.swap(false, Relaxed)
    }

    /// Whether others may be kept from the file while the connection is open.
    pub(super) fn shuts_out(&self) -> bool {
        self.touched.load(Relaxed) & SHUTS_OUT != 0
    }

    /// Whether the pool's authorizer was replaced.
    pub(super) fn is_blind(&self) -> bool {
        self.touched.load(Relaxed) & BLIND != 0
    }

    /// Whether the cache may hold statements that begin or end transactions. Assumes that the caller then
    /// empties it.
    pub(super) fn take_transactions(&self) -> bool {
        self.touched.fetch_and(!TRANSACTIONS, Relaxed) & TRANSACTIONS != 0
    }

    /// The pool itself works until the guard is dropped.
    pub(super) fn quiet(self: &Arc<Self>) -> ModeGuard {
        self.enter(QUIET)
    }

    /// A lease's borrower works in a transaction of the pool until the guard is dropped.
    pub(super) fn guard(self: &Arc<Self>) -> ModeGuard {
        self.enter(GUARDING)
    }

    /// Until the guard is dropped, a commit that may write is forbidden, and
    /// [`take_rolled_back`](ChangeTracker::take_rolled_back) reports it.
    pub(super) fn probe(self: &Arc<Self>) -> ModeGuard {
        self.enter(PROBING)
    }

    /// A borrower works in a snapshot of the pool until the guard is dropped.
    pub(super) fn read(self: &Arc<Self>) -> ModeGuard {
        self.enter(READING)
    }

    /// A member of a group works until the guard is dropped. Statements that were prepared before are not
    /// seen.
    pub(super) fn fence(self: &Arc<Self>) -> ModeGuard {
        self.enter(FENCING)
    }

    fn enter(self: &Arc<Self>, mode: u8) -> ModeGuard {
        let before = self.mode.swap(mode, Relaxed);
        ModeGuard(Arc::clone(self), before)
    }

    /// What was forbidden since the last call.
    pub(super) fn take_refused(&self) -> Option<String> {
        self.refused.lock().take()
    }

    /// Whether `on_open` replaced one of the hooks that [`install`](ChangeTracker::install) set.
    pub(super) fn is_hooked(&self) -> bool {
        self.touched.load(Relaxed) & (HOOKED | BLIND | UNGUARDED) != 0
    }

    /// Whether the borrower did something that a reset cannot undo.
    pub(super) fn is_touched(&self) -> bool {
        self.touched.load(Relaxed) & (CHANGED | BLIND | HOOKED) != 0
    }

    /// From now on, the connection counts as untouched.
    pub(super) fn forget(&self) {
        self.touched.store(0, Relaxed);
    }

    /// Why a member of a group may not do this, in words.
    fn refuses(&self, context: &AuthContext<'_>) -> Option<String> {
        if self.is_unguarded() {
            return Some("a statement after a commit or rollback hook was set".to_owned());
        }
        breaks_out(context).or_else(|| changes(context))
    }

    /// SQLite calls this while it prepares a statement, on the thread that has the connection.
    fn see(&self, context: &AuthContext<'_>) -> Authorization {
        match self.mode.load(Relaxed) {
            QUIET | PROBING => Authorization::Allow,
            // The transaction is gone: a statement now would commit by itself.
            FENCING | GUARDING if self.rolled_back.load(Relaxed) => Authorization::Deny,
            GUARDING | READING if matches!(context.action, AuthAction::Transaction { .. }) => {
                Authorization::Deny
            }
            // No hook of the pool is left that would prevent a commit.
            READING if self.is_unguarded() => Authorization::Deny,
            mode if (mode == READING || self.only_reads()) && turns_on_writing(context) => {
                Authorization::Deny
            }
            FENCING => match self.refuses(context) {
                Some(what) => {
                    self.refused.lock().get_or_insert(what);
                    Authorization::Deny
                }
                None => Authorization::Allow,
            },
            _ if sets_one_of(context, self.fixed) || sets_cipher_default(context) => {
                Authorization::Deny
            }
            _ if self.external && brings_checkpoints_back(context) => Authorization::Deny,
            _ => {
                if let Some(pages) = pragma_number(context, "wal_autocheckpoint") {
                    self.autocheckpoint.store(pages.into(), Relaxed);
                }
                if shuts_out(context) {
                    self.touched.fetch_or(SHUTS_OUT | CHANGED, Relaxed);
                } else if ends_transactions(context) {
                    self.touched.fetch_or(TRANSACTIONS, Relaxed);
                } else if changes(context).is_some() {
                    self.touched.fetch_or(CHANGED, Relaxed);
                }
                Authorization::Allow
            }
        }
    }
}

/// How the action would break out of a group's transaction, in words.
fn breaks_out(context: &AuthContext<'_>) -> Option<String> {
    match context.action {
        AuthAction::Transaction { operation } => Some(name_of(operation).to_owned()),
        AuthAction::Savepoint {
            operation,
            savepoint_name,
        } if savepoint_name.eq_ignore_ascii_case(MEMBER)
            && operation != TransactionOperation::Rollback =>
        {
            Some(format!("{} {MEMBER}", name_of(operation)))
        }
        _ => None,
    }
}

fn ends_transactions(context: &AuthContext<'_>) -> bool {
    matches!(
        context.action,
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. }
    )
}

fn name_of(operation: TransactionOperation) -> &'static str {
    match operation {
        TransactionOperation::Begin => "BEGIN",
        TransactionOperation::Release => "RELEASE",
        TransactionOperation::Rollback => "ROLLBACK",
        // The enum has no variant for COMMIT.
        _ => "COMMIT",
    }
}

/// How the action changes the connection in a way that a reset cannot undo, in words.
fn changes(context: &AuthContext<'_>) -> Option<String> {
    let what = match context.action {
        // ATTACH with a parameter for a name comes as `Unknown`, since its name is not known yet.
        AuthAction::Unknown { .. } | AuthAction::Attach { .. } => "ATTACH",
        AuthAction::Detach { .. } => "DETACH",
        AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::DropTempIndex { .. }
        | AuthAction::DropTempTable { .. }
        | AuthAction::DropTempTrigger { .. }
        | AuthAction::DropTempView { .. } => TEMPORARY,
        AuthAction::AlterTable { database_name, .. }
            if database_name.eq_ignore_ascii_case("temp") =>
        {
            TEMPORARY
        }
        // SQLite itself does this when it renames an object.
        AuthAction::Update { table_name, .. } if is_temporary_schema(table_name) => return None,
        AuthAction::Insert { .. }
        | AuthAction::Update { .. }
        | AuthAction::Delete { .. }
        | AuthAction::CreateVtable { .. }
        | AuthAction::DropVtable { .. }
            if context.database_name == Some("temp") =>
        {
            TEMPORARY
        }
        AuthAction::Pragma {
            pragma_name,
            pragma_value: Some(_),
        } if !leaves_connection_alone(pragma_name) => {
            return Some(format!("PRAGMA {pragma_name}"));
        }
        AuthAction::Function { function_name }
            if function_name.eq_ignore_ascii_case("load_extension") =>
        {
            "load_extension"
        }
        _ => return None,
    };
    Some(what.to_owned())
}

/// Pragmas with a value that may keep other connections from the file.
fn shuts_out(context: &AuthContext<'_>) -> bool {
    let harmless = match context.action {
        AuthAction::Pragma {
            pragma_value: Some(value),
            ..
        } => ["wal", "normal"]
            .iter()
            .any(|h| value.eq_ignore_ascii_case(h)),
        _ => true,
    };
    !harmless && sets_one_of(context, &["locking_mode", "journal_mode"])
}

/// SQLCipher keeps these settings for all later connections of the process.
fn sets_cipher_default(context: &AuthContext<'_>) -> bool {
    const PREFIX: &str = "cipher_default_";
    match context.action {
        AuthAction::Pragma {
            pragma_name,
            pragma_value: Some(_),
        } => pragma_name
            .get(..PREFIX.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX)),
        _ => false,
    }
}

/// Whether the action would make SQLite run checkpoints, or cut the log, where another process runs them.
fn brings_checkpoints_back(context: &AuthContext<'_>) -> bool {
    pragma_number(context, "wal_autocheckpoint").is_some_and(|pages| pages > 0)
        || pragma_number(context, "journal_size_limit").is_some_and(|bytes| bytes >= 0)
}

/// The number given to the pragma of this name. SQLite reads a value that is no number as zero.
fn pragma_number(context: &AuthContext<'_>, pragma: &str) -> Option<i32> {
    match context.action {
        AuthAction::Pragma {
            pragma_name,
            pragma_value: Some(value),
        } if pragma_name.eq_ignore_ascii_case(pragma) => Some(value.trim().parse().unwrap_or(0)),
        _ => None,
    }
}

/// Whether the action would let a read-only connection write, or change the file outside of SQLite's
/// transactions.
fn turns_on_writing(context: &AuthContext<'_>) -> bool {
    sets_one_of(context, &["query_only", "journal_mode", "locking_mode"])
}

fn sets_one_of(context: &AuthContext<'_>, pragmas: &[&str]) -> bool {
    match context.action {
        AuthAction::Pragma {
            pragma_name,
            pragma_value: Some(_),
        } => pragmas
            .iter()
            .any(|pragma| pragma_name.eq_ignore_ascii_case(pragma)),
        _ => false,
    }
}

fn is_temporary_schema(table: &str) -> bool {
    ["sqlite_temp_master", "sqlite_temp_schema"]
        .iter()
        .any(|schema| table.eq_ignore_ascii_case(schema))
}

const TEMPORARY: &str = "a change of a temporary table";

/// Pragmas whose argument only says what to look at, or whose effect is in the file.
fn leaves_connection_alone(pragma: &str) -> bool {
    const HARMLESS: [&str; 16] = [
        "application_id",
        "foreign_key_check",
        "foreign_key_list",
        "incremental_vacuum",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "optimize",
        "quick_check",
        "schema_version",
        "table_info",
        "table_list",
        "table_xinfo",
        "user_version",
        "wal_checkpoint",
    ];
    HARMLESS
        .iter()
        .any(|harmless| pragma.eq_ignore_ascii_case(harmless))
}

impl Tripwire {
    /// The result of a hook that only marks its place: let everything pass.
    fn is_nothing(&self) -> bool {
        false
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        self.0.touched.fetch_or(self.1, Relaxed);
    }
}

impl Drop for ModeGuard {
    fn drop(&mut self) {
        self.0.mode.store(self.1, Relaxed);
    }
}
