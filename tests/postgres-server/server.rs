//! A PostgreSQL server, and a standby of it.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

use crate::guardian::Guardian;

/// A running server. Dropping it stops it and removes its files.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    name: String,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    _guardian: Guardian,
}

/// A program of PostgreSQL's. Debian keeps them out of the `PATH`, each version in a folder of its own.
fn program(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut folders: Vec<_> = versions
        .into_iter()
        .flatten()
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .collect();
    folders.sort();
    folders.reverse();
    find(name, &folders)
}

/// Looks for a program in these folders, and then in those of the `PATH`.
pub(crate) fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = folders.iter().cloned().chain(std::env::split_paths(&path));
    folders
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
}

/// Whether PostgreSQL's programs are installed.
#[must_use]
pub fn is_installed() -> bool {
    program("initdb").is_some()
}

/// Whether PostgreSQL is installed. If not, the test is to be skipped, which this says; or it fails, with
/// `LEASEPOOL_POSTGRES=required`.
#[must_use]
pub fn installed() -> bool {
    if is_installed() {
        return true;
    }
    assert!(!is_required(), "PostgreSQL is not installed");
    eprintln!("skipped: PostgreSQL is not installed");
    false
}

pub(crate) fn is_required() -> bool {
    std::env::var("LEASEPOOL_POSTGRES").is_ok_and(|value| value == "required")
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.starts_with(b"0\n")
}

/// What runs a program as another user than root: PostgreSQL and pgbouncer refuse to run as root.
pub(crate) fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

/// A temporary folder that the servers can use. A guardian removes it.
pub(crate) fn folder() -> std::io::Result<PathBuf> {
    let folder = tempfile::tempdir()?.keep();
    if is_root() {
        let user = Command::new("chown").arg("postgres").arg(&folder).status();
        assert!(user?.success(), "there is no user postgres");
    }
    Ok(folder)
}

fn try_run(name: &str, args: &[&str]) -> Output {
    // What the server inherits it keeps open.
    let log = tempfile::tempfile().unwrap();
    let mut output = as_postgres(&program(name).unwrap())
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
    pub fn start(settings: &str) -> Server {
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
        let folder = folder().unwrap();
        let stop = as_postgres(&program("pg_ctl").unwrap());
        let stop = [stop.get_program()].into_iter().chain(stop.get_args());
        let stop: Vec<_> = stop.map(|word| word.to_str().unwrap()).collect();
        let data = folder.join(name);
        let mut args = vec![folder.to_str().unwrap(), data.to_str().unwrap()];
        args.extend(stop);
        let guardian = Guardian::new(
            // A test may have made it stand still.
            "folder=$1 data=$2\nshift 2\nkill -CONT \"$(head -n 1 \"$data/postmaster.pid\")\"\n\
             \"$@\" -D \"$data\" -m immediate stop\nrm -rf \"$folder\"",
            &args,
        );
        Server {
            folder,
            name: name.to_owned(),
            port: free_port(),
            _guardian: guardian,
        }
    }

    /// A standby that follows this server.
    pub fn standby(&self) -> Server {
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
        let data = self.folder.join(&self.name);
        data.to_str().unwrap().to_owned()
    }

    fn configure(&self, settings: &str) {
        let path = Path::new(&self.data()).join("postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        let folder = self.folder.display();
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

    /// Starts it again, after [`Server::stop`].
    pub fn begin(&self) {
        run(
            "pg_ctl",
            &["-D", &self.data(), "-w", "-l", &self.log(), "start"],
        );
    }

    /// Kills all backends and starts anew.
    pub fn restart(&self) {
        let (data, log) = (self.data(), self.log());
        run(
            "pg_ctl",
            &["-D", &data, "-w", "-l", &log, "-m", "immediate", "restart"],
        );
    }

    /// Kills it and all backends.
    pub fn stop(&self) {
        let _ = try_run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
    }

    /// Makes the standby a primary.
    pub fn promote(&self) {
        run("pg_ctl", &["-D", &self.data(), "-w", "promote"]);
    }

    /// Sends a signal to the server and to all of its backends.
    pub fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(Path::new(&self.data()).join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        let children = Command::new("pgrep").args(["-P", &pid]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        for pid in children.lines().chain([pid.as_str()]) {
            let _ = Command::new("kill").args([signal, pid]).status();
        }
    }

    /// What a client connects with.
    pub fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }

    /// A connection outside of any pool.
    pub fn client(&self) -> Client {
        let begun = Instant::now();
        loop {
            match Client::connect(&format!("{} application_name=watcher", self.url()), NoTls) {
                Ok(client) => return client,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error}"),
            }
        }
    }

    /// How many backends serve clients, apart from those of [`Server::client`].
    pub fn backends(client: &mut Client) -> i64 {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                     AND application_name <> 'watcher'";
        client.query_one(count, &[]).unwrap().get(0)
    }
}
