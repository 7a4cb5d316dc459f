//! The `sqlite3` shell: another process that has a database open.
//! It may not outlive its test: a shell that is dropped is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

pub(crate) struct Shell {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Shell {
    pub(crate) fn on(file: &Path) -> Self {
        let mut process = Command::new("sqlite3")
            // At an error, the shell ends, and `run` fails. It would skip the rest of the line, and `run` wait forever.
            .arg("-bail")
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Shell { process, output }
    }

    /// Returns when the shell has run `sql`, with what it printed.
    pub(crate) fn run(&mut self, sql: &str) -> String {
        let input = self.process.stdin.as_mut().unwrap();
        writeln!(input, "{sql}; SELECT 'done';").unwrap();
        let mut printed = String::new();
        loop {
            let before = printed.len();
            assert!(self.output.read_line(&mut printed).unwrap() > 0, "{sql}");
            if printed[before..].trim() == "done" {
                printed.truncate(before);
                return printed.trim().to_owned();
            }
        }
    }

    /// The shell closes the database and ends by itself.
    pub(crate) fn end(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
