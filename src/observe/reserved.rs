//! Reserved ids: the names of borrowers that are no agents. No agent may have an id with this prefix.
//! It knows no borrower.

/// All borrowers that name no agent: any number of them, on any thread. A connection parked for one of them serves the
/// others just as well.
pub(crate) const ANONYMOUS: &str = "leasepool: get";
/// What the pool itself writes groups of writes under.
pub(crate) const WRITER: &str = "leasepool: writer";
pub(crate) const CHECKPOINT: &str = "leasepool: checkpoint";
pub(crate) const BACKUP: &str = "leasepool: backup";
pub(crate) const VACUUM: &str = "leasepool: vacuum";

const PREFIX: &str = "leasepool: ";

#[inline]
pub(crate) fn is_reserved(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// Whether the pool borrows under this id for its own work.
pub(crate) fn is_of_pool(id: &str) -> bool {
    is_reserved(id) && id != ANONYMOUS
}
