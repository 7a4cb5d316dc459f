//! Call site: where a connection was asked for: the source line, and the request that it serves.
//! It decides nothing.

use std::fmt;
use std::panic::Location;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallSite {
    pub(crate) line: &'static Location<'static>,
    /// Method and route, where an extractor of a web framework knows them.
    pub(crate) request: Option<&'static str>,
}

impl CallSite {
    /// The line that calls, without a request.
    #[track_caller]
    pub(crate) fn here() -> Self {
        CallSite {
            line: Location::caller(),
            request: None,
        }
    }
}

impl fmt::Display for CallSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.line)?;
        match self.request {
            Some(request) => write!(f, " ({request})"),
            None => Ok(()),
        }
    }
}
