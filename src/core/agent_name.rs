//! AgentName: the id of an agent as text, rendered from any `Display`; short ids need no allocation.
//! It knows no agents.

use std::fmt::{self, Display, Write};

use crate::error::Error;
use crate::observe::reserved::is_reserved;

/// Longest id of an agent, in bytes.
const MAX_LEN: usize = 1024;
/// Ids up to this length, in bytes, need no allocation. A UUID has 36.
const SHORT: usize = 63;

/// A valid agent id.
#[derive(Debug, Clone)]
pub(crate) struct AgentName(Text);

#[derive(Debug, Clone)]
enum Text {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(String),
    TooLong,
}

impl AgentName {
    /// # Errors
    /// [`Error::InvalidAgent`] for an id that no agent may have.
    #[inline]
    pub(crate) fn of(id: impl Display) -> Result<Self, Error> {
        AgentName::parse(id).map_err(|reason| Error::InvalidAgent { reason })
    }

    /// # Errors
    /// With the reason why the id cannot be an agent's.
    #[inline]
    pub(crate) fn parse(id: impl Display) -> Result<Self, &'static str> {
        let mut text = Text::Short {
            len: 0,
            bytes: [0; SHORT],
        };
        let rendered = write!(text, "{id}");
        match text.as_str() {
            _ if matches!(text, Text::TooLong) => Err("it is longer than 1024 bytes"),
            _ if rendered.is_err() => Err("it cannot be displayed"),
            "" => Err("it is empty"),
            id if is_reserved(id) => Err("ids that begin with \"leasepool: \" are reserved"),
            _ => Ok(AgentName(text)),
        }
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Text {
    #[inline]
    fn as_str(&self) -> &str {
        match self {
            // Only whole strings were written, so it is UTF-8.
            Text::Short { len, bytes } => bytes
                .get(..usize::from(*len))
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or_default(),
            Text::Long(text) => text,
            Text::TooLong => "",
        }
    }

    #[cold]
    fn write_long(&mut self, more: &str) -> fmt::Result {
        if matches!(self, Text::TooLong) || self.as_str().len() + more.len() > MAX_LEN {
            *self = Text::TooLong;
            return Err(fmt::Error);
        }
        match self {
            Text::Long(text) => text.push_str(more),
            _ => *self = Text::Long([self.as_str(), more].concat()),
        }
        Ok(())
    }
}

impl Write for Text {
    #[inline]
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if let Text::Short { len, bytes } = self {
            let end = usize::from(*len) + more.len();
            if let Some(rest) = bytes.get_mut(usize::from(*len)..end) {
                rest.copy_from_slice(more.as_bytes());
                *len = end as u8;
                return Ok(());
            }
        }
        self.write_long(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Displays its parts one by one, and goes on after an error.
    struct Parts(Vec<String>);

    impl Display for Parts {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for part in &self.0 {
                let _ = f.write_str(part);
            }
            Ok(())
        }
    }

    struct Fails;

    impl Display for Fails {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            Err(fmt::Error)
        }
    }

    fn of(id: impl Display) -> Result<String, &'static str> {
        match AgentName::of(id) {
            Ok(name) => Ok(name.as_str().to_owned()),
            Err(Error::InvalidAgent { reason }) => Err(reason),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn any_length_in_any_parts() {
        for len in [1, 2, 62, 63, 64, 65, 500, 1023, 1024] {
            for size in [1, 7, 63, 64, 1024] {
                // Two bytes each, and one more if the length is odd.
                let text = "é".repeat(len / 2) + &"x".repeat(len % 2);
                let chars: Vec<_> = text.chars().collect();
                let parts = chars.chunks(size).map(|part| part.iter().collect());
                assert_eq!(of(Parts(parts.collect())), Ok(text), "{len} in {size}s");
            }
        }
    }

    #[test]
    fn what_is_no_id() {
        assert_eq!(of(""), Err("it is empty"));
        assert_eq!(of(Fails), Err("it cannot be displayed"));
        let too_long = "it is longer than 1024 bytes";
        assert_eq!(of("x".repeat(1025)), Err(too_long));
        // Also if something short follows.
        let parts = vec!["x".repeat(1000), "y".repeat(25), "z".into()];
        assert_eq!(of(Parts(parts)), Err(too_long));
        let reserved = Err("ids that begin with \"leasepool: \" are reserved");
        assert_eq!(of("leasepool: get"), reserved);
        assert_eq!(of(Parts(vec!["lease".into(), "pool: x".into()])), reserved);
    }

    #[test]
    fn anything_that_displays() {
        assert_eq!(of(42_u64), Ok("42".into()));
        assert_eq!(of('x'), Ok("x".into()));
        assert_eq!(of(format_args!("{}/{}", 1, 2)), Ok("1/2".into()));
    }
}
