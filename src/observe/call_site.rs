//! Call site: where a connection was asked for: the source line, and the request that it serves.
//! It decides nothing.

use std::fmt;
use std::panic::Location;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallSite {
    pub(crate) line: &'static Location<'static>,
    /// Method and route, where an extractor of a web framework knows them.
    pub(crate) request: Option<RequestName>,
}

/// Method and route, kept as long as the program runs. A thin pointer: each lease passes its call site on several times.
pub(crate) type RequestName = &'static String;

impl CallSite {
    /// The line that calls, without a request.
    #[track_caller]
    pub(crate) fn here() -> Self {
        CallSite {
            line: Location::caller(),
            request: None,
        }
    }

    /// The same line, for this request.
    pub(crate) fn serving(self, request: Option<RequestName>) -> Self {
        CallSite { request, ..self }
    }

    pub(crate) fn request(self) -> Option<&'static str> {
        self.request.map(String::as_str)
    }
}

/// How a call site is shown.
pub(crate) struct Shown<'a> {
    pub(crate) line: &'a Location<'a>,
    pub(crate) request: Option<&'a str>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.line)?;
        match self.request {
            Some(request) => write!(f, " ({request})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for CallSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, request) = (self.line, self.request());
        Shown { line, request }.fmt(f)
    }
}
