//! Guardian: a shell that ends what this process has started, however this process ends: also by Ctrl-C or `kill -9`.
//! It knows nothing of servers.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Dropping it runs its script, and waits for the end of that.
#[derive(Debug)]
pub(crate) struct Guardian(Child);

impl Guardian {
    /// `script` finds `args` as `$1`, `$2`, ...
    pub(crate) fn new(script: &str, args: &[&str]) -> Guardian {
        // The pipe ends with this process, and Ctrl-C goes to the process group of the terminal only.
        let shell = Command::new("sh")
            .arg("-c")
            .arg(format!("cat >/dev/null\n{script}"))
            .arg("guardian")
            .args(args)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Guardian(shell.unwrap())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
