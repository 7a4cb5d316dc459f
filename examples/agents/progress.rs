//! How far an act has come: one line on a terminal, written again and again.
//! Writes nothing where stderr is not a terminal.

use std::io::{IsTerminal, Write, stderr};

use crate::args::Act;

pub(crate) struct Progress {
    act: Act,
    turns: u64,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(act: Act, turns: u64) -> Self {
        let shown = stderr().is_terminal();
        Progress { act, turns, shown }
    }

    pub(crate) fn show(&mut self, turn: u64, message: &str) {
        const WIDTH: usize = 30;
        if !self.shown {
            return;
        }
        let done = (turn * WIDTH as u64 / self.turns.max(1)) as usize;
        let bar = "█".repeat(done.min(WIDTH));
        let (name, turns) = (self.act.name(), self.turns);
        // What cannot be shown is not worth an error.
        let _ = write!(
            stderr(),
            "\r\x1b[K{name:<7} {bar:░<WIDTH$} {turn}/{turns} turns  {message}"
        );
    }

    /// Makes room for what is printed next.
    pub(crate) fn clear(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
