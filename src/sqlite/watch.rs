//! ChangeTracker: sees, through the authorizer and hooks on a connection, what its borrowers do to it.
//! It forbids nothing in a lease, and in a group of writes whatever would reach beyond one member of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::hooks::{Action, AuthAction, AuthContext, Authorization, TransactionOperation};

/// Sees, through the authorizer and hooks on a connection, what its borrowers do to it.
pub(super) struct ChangeTracker {
    touched: AtomicU32,
    mode: AtomicU8,
    /// What was forbidden first, in words, since somebody asked.
    refused: Mutex<Option<String>>,
}

/// A borrower is at work: what it does is noted.
const WATCHING: u8 = 0;
/// The pool itself is at work: nothing is noted.
const QUIET: u8 = 1;
/// A member of a group of writes is at work: what would outlive or end its savepoint is forbidden.
const FENCING: u8 = 2;

/// The savepoint of a member of a group. A member may roll back to it, but not end or hide it.
pub(super) const MEMBER: &str = "leasepool_member";

/// Something was done that a reset cannot undo.
const CHANGED: u32 = 1;
/// Our authorizer was replaced: nothing is seen any more.
const BLIND: u32 = 2;
/// One of the hooks that were there before `on_open` was replaced.
const HOOKED: u32 = 4;

/// Sets its bit when the closure that owns it is dropped.
struct Tripwire(Arc<ChangeTracker>, u32);

/// Keeps a watch in another mode for as long as it lives.
pub(super) struct ModeGuard(Arc<ChangeTracker>);

impl ChangeTracker {
    /// Watches `connection` from now on, and marks its hooks, so that it shows whether `on_open`
    /// sets any.
    pub(super) fn install(connection: &Connection) -> rusqlite::Result<Arc<ChangeTracker>> {
        let watch = Arc::new(ChangeTracker {
            touched: AtomicU32::new(0),
            mode: AtomicU8::new(WATCHING),
            refused: Mutex::default(),
        });
        let tripwire = |bit| Tripwire(Arc::clone(&watch), bit);
        let authorizer = tripwire(BLIND);
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            authorizer.0.see(&context)
        }))?;
        let hook = tripwire(HOOKED);
        connection.commit_hook(Some(move || hook.is_nothing()))?;
        let hook = tripwire(HOOKED);
        connection.rollback_hook(Some(move || _ = hook.is_nothing()))?;
        let hook = tripwire(HOOKED);
        connection.update_hook(Some(move |_: Action, _: &str, _: &str, _: i64| {
            hook.is_nothing();
        }))?;
        let hook = tripwire(HOOKED);
        connection.progress_handler(i32::MAX, Some(move || hook.is_nothing()))?;
        Ok(watch)
    }

    /// The pool itself is at work, until the shift is dropped.
    pub(super) fn quiet(self: &Arc<Self>) -> ModeGuard {
        self.mode.store(QUIET, Relaxed);
        ModeGuard(Arc::clone(self))
    }

    /// A member of a group is at work, until the shift is dropped. Statements that were prepared before
    /// are not seen.
    pub(super) fn fence(self: &Arc<Self>) -> ModeGuard {
        self.mode.store(FENCING, Relaxed);
        ModeGuard(Arc::clone(self))
    }

    /// What was forbidden since the last call.
    pub(super) fn take_refused(&self) -> Option<String> {
        self.refused.lock().take()
    }

    /// Whether `on_open` set hooks, of those that [`install`](ChangeTracker::install) marked.
    pub(super) fn is_hooked(&self) -> bool {
        self.touched.load(Relaxed) & (HOOKED | BLIND) != 0
    }

    pub(super) fn is_touched(&self) -> bool {
        self.touched.load(Relaxed) != 0
    }

    /// From now on, the connection counts as untouched.
    pub(super) fn forget(&self) {
        self.touched.store(0, Relaxed);
    }

    /// Called as a statement is being prepared, by the thread that has the connection.
    fn see(&self, context: &AuthContext<'_>) -> Authorization {
        match self.mode.load(Relaxed) {
            QUIET => Authorization::Allow,
            FENCING => match breaks_out(context).or_else(|| changes(context)) {
                Some(what) => {
                    self.refused.lock().get_or_insert(what);
                    Authorization::Deny
                }
                None => Authorization::Allow,
            },
            _ => {
                if changes(context).is_some() {
                    self.touched.fetch_or(CHANGED, Relaxed);
                }
                Authorization::Allow
            }
        }
    }
}

/// What the action would do to the transaction of a group, in words.
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

fn name_of(operation: TransactionOperation) -> &'static str {
    match operation {
        TransactionOperation::Begin => "BEGIN",
        TransactionOperation::Release => "RELEASE",
        TransactionOperation::Rollback => "ROLLBACK",
        // The enum has no name for it.
        _ => "COMMIT",
    }
}

/// What the action changes about the connection that a reset cannot undo, in words.
fn changes(context: &AuthContext<'_>) -> Option<String> {
    let what = match context.action {
        // ATTACH with a parameter for a name comes as `Unknown`, since it has no name to tell.
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
        // SQLite itself does this as it renames something.
        AuthAction::Update { table_name, .. } if is_temporary_schema(table_name) => return None,
        AuthAction::Insert { .. }
        | AuthAction::Update { .. }
        | AuthAction::Delete { .. }
        | AuthAction::AlterTable { .. }
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
    /// The hooks that only mark their place let everything pass.
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
        self.0.mode.store(WATCHING, Relaxed);
    }
}
