//! The example's program in a process of its own, on a port of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use leasepool::rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) process: Child,
    stdout: BufReader<ChildStdout>,
    /// What it said until it listened.
    said: String,
    /// The file, or the folder of files.
    pub(crate) database: PathBuf,
    _folder: TempDir,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Server {
        Server::start_with("--database", args)
    }

    /// `option` says what is at the path of the database.
    pub(crate) fn start_with(option: &str, args: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().canonicalize().unwrap().join("chat.db");
        let mut process = Command::new(env!("CARGO_BIN_EXE_chat_server"))
            .arg(option)
            .arg(&database)
            .args(args)
            .args((!args.contains(&"--listen")).then_some("--listen=127.0.0.1:0"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let before = said.len();
            assert!(stdout.read_line(&mut said).unwrap() > 0, "it did not start");
            if let Some(address) = said[before..].trim().strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
        };
        Server {
            address,
            said,
            process,
            stdout,
            database,
            _folder: folder,
        }
    }

    /// Starts it with options that it refuses. Returns why.
    pub(crate) fn refused(args: &[&str]) -> String {
        let mut program = Command::new(env!("CARGO_BIN_EXE_chat_server"));
        let output = program.args(args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    /// What followed this when it started.
    pub(crate) fn said(&self, beginning: &str) -> &str {
        let line = self
            .said
            .lines()
            .find_map(|line| line.strip_prefix(beginning));
        line.unwrap_or_else(|| panic!("{}", self.said))
    }

    pub(crate) fn terminate(&self) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the end that was asked for. Returns what was printed.
    pub(crate) fn ended(&mut self) -> String {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < LONG, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(said.contains("; 0 left"), "{said}");
        let wal = self.database.with_extension("db-wal");
        assert!(!wal.exists(), "the last close left a -wal");
        said
    }

    /// All messages that the database has, after the server has ended.
    pub(crate) fn stored(&self) -> Vec<(i64, String, String, String)> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let database = Connection::open_with_flags(&self.database, flags).unwrap();
        let sound: String = database
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok");
        let mut select = database
            .prepare("SELECT id, session, author, text FROM message ORDER BY id")
            .unwrap();
        let rows = select.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// The descriptors that the server has on its database, as the kernel tells.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.id());
        let database = self.database.to_str().unwrap();
        // Read one by one, what is closed and opened meanwhile would count twice.
        let list = || {
            let links = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let targets = links.filter_map(|link| link.path().read_link().ok());
            targets
                .filter(|target| target.to_string_lossy().starts_with(database))
                .collect::<Vec<_>>()
        };
        let mut before = list();
        loop {
            let now = list();
            if now == before {
                return now.len();
            }
            before = now;
        }
    }

    /// Resident memory in kB.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kb = line.unwrap().split_whitespace().nth(1);
        kb.unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
