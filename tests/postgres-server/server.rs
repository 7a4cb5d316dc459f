//! A PostgreSQL server of a test's own, and a standby of it.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use tempfile::TempDir;

/// A running server. Dropping it stops it and removes its files.
pub(crate) struct Server {
    folder: TempDir,
    name: String,
    pub(crate) port: u16,
}

/// The folder of PostgreSQL's programs.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<_> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}

/// The programs, or `None` where they are not installed: then the test is skipped.
#[must_use]
pub(crate) fn installed() -> bool {
    if programs().is_some() {
        return true;
    }
    let required = std::env::var("LEASEPOOL_POSTGRES").is_ok_and(|value| value == "required");
    assert!(!required, "PostgreSQL is not installed");
    eprintln!("skipped: PostgreSQL is not installed");
    false
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.starts_with(b"0\n")
}

/// Runs one of PostgreSQL's programs; it refuses to run as root.
fn try_run(program: &str, args: &[&str]) -> Output {
    let path = programs().unwrap().join(program);
    let mut command = match is_root() {
        true => {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(path);
            command
        }
        false => Command::new(path),
    };
    // What the server inherits it keeps open.
    let log = tempfile::tempfile().unwrap();
    let mut output = command
        .args(args)
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log.try_clone().unwrap())
        .output()
        .unwrap();
    let mut log = log;
    std::io::Seek::rewind(&mut log).unwrap();
    std::io::Read::read_to_end(&mut log, &mut output.stdout).unwrap();
    output
}

fn run(program: &str, args: &[&str]) {
    let output = try_run(program, args);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

impl Server {
    /// A new server with one database, `postgres`, and settings of its own.
    pub(crate) fn start(settings: &str) -> Server {
        let server = Server::empty("data");
        run(
            "initdb",
            &[
                "-D",
                &server.data(),
                "-U",
                "postgres",
                "-A",
                "trust",
                "--no-locale",
                "--no-sync",
            ],
        );
        server.configure(settings);
        server.begin();
        server
    }

    fn empty(name: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            let chowned = Command::new("chown")
                .arg("postgres")
                .arg(folder.path())
                .status();
            assert!(chowned.unwrap().success());
        }
        Server {
            folder,
            name: name.to_owned(),
            port: free_port(),
        }
    }

    /// A standby that follows this server.
    pub(crate) fn standby(&self) -> Server {
        let standby = Server::empty("standby");
        let port = self.port.to_string();
        run(
            "pg_basebackup",
            &[
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "postgres",
                "-D",
                &standby.data(),
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
                "--no-sync",
            ],
        );
        standby.configure("");
        standby.begin();
        standby
    }

    fn data(&self) -> String {
        let data = self.folder.path().join(&self.name);
        data.to_str().unwrap().to_owned()
    }

    fn configure(&self, settings: &str) {
        let path = Path::new(&self.data()).join("postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        let folder = self.folder.path().display();
        writeln!(
            file,
            "listen_addresses='127.0.0.1'\nport={}\nunix_socket_directories='{folder}'\nfsync=off\n{settings}",
            self.port
        )
        .unwrap();
    }

    fn log(&self) -> String {
        format!("{}.log", self.data())
    }

    pub(crate) fn begin(&self) {
        run(
            "pg_ctl",
            &["-D", &self.data(), "-w", "-l", &self.log(), "start"],
        );
    }

    /// Kills all backends and starts anew.
    pub(crate) fn restart(&self) {
        let (data, log) = (self.data(), self.log());
        run(
            "pg_ctl",
            &["-D", &data, "-w", "-l", &log, "-m", "immediate", "restart"],
        );
    }

    pub(crate) fn stop(&self) {
        let _ = try_run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
    }

    pub(crate) fn promote(&self) {
        run("pg_ctl", &["-D", &self.data(), "-w", "promote"]);
    }

    /// Sends a signal to the server and to all of its backends.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(Path::new(&self.data()).join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        let children = Command::new("pgrep").args(["-P", &pid]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        for pid in children.lines().chain([pid.as_str()]) {
            let _ = Command::new("kill").args([signal, pid]).status();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }

    /// A connection outside of any pool.
    pub(crate) fn client(&self) -> Client {
        let begun = Instant::now();
        loop {
            match Client::connect(&format!("{} application_name=watcher", self.url()), NoTls) {
                Ok(client) => return client,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error}"),
            }
        }
    }

    /// How many backends serve clients, apart from those of [`Server::client`].
    pub(crate) fn backends(client: &mut Client) -> i64 {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                     AND application_name <> 'watcher'";
        client.query_one(count, &[]).unwrap().get(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
