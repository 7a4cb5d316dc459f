//! The programs of docs/servers.md. They need clients of a server, which the library does not depend on.
#![doc = include_str!("../../docs/servers.md")]
