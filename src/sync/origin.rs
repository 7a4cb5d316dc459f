//! Origin: the process in which a value was made.
//! A fork of that process has the same memory, but neither its threads nor its locks on files.

use std::fmt;

/// The process in which this value was made.
#[derive(Clone)]
pub(crate) struct Origin(Option<Guard>);

#[cfg(unix)]
type Guard = forkguard::atfork::Guard;
#[cfg(not(unix))]
type Guard = forkguard::noop::Guard;

impl Origin {
    pub(crate) fn here() -> Self {
        #[cfg(unix)]
        let guard = Guard::try_new().ok();
        #[cfg(not(unix))]
        let guard = None;
        Origin(guard)
    }

    /// Whether this process is a fork of the one in which the value was made. Costs one load from memory.
    #[inline]
    pub(crate) fn is_elsewhere(&self) -> bool {
        // A guard reports each fork once; a clone of it reports it again.
        self.0
            .as_ref()
            .is_some_and(|guard| guard.clone().detected_fork())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origin")
    }
}
