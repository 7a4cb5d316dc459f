//! What the SQLite that is linked says of itself.
//! It opens no file.

use std::sync::OnceLock;

/// The options that it was compiled with, in its own order. Asked once, of a connection in memory, which has no descriptor.
pub(super) fn compile_options() -> &'static [String] {
    static OPTIONS: OnceLock<Vec<String>> = OnceLock::new();
    OPTIONS.get_or_init(|| asked().unwrap_or_default())
}

fn asked() -> rusqlite::Result<Vec<String>> {
    let connection = rusqlite::Connection::open_in_memory()?;
    let mut options = connection.prepare("PRAGMA compile_options")?;
    options.query_map([], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_options_are_known() {
        let of = |prefix: &str| {
            compile_options()
                .iter()
                .any(|option| option.starts_with(prefix))
        };
        assert!(of("THREADSAFE="), "{:?}", compile_options());
        assert!(of("COMPILER="), "{:?}", compile_options());
    }
}
