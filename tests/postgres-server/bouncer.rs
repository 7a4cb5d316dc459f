//! A pgbouncer in front of a server.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::guardian::Guardian;
use crate::server::{Server, as_postgres, find, folder, free_port, is_required};

/// A running pgbouncer. Dropping it stops it and removes its files.
#[derive(Debug)]
pub struct Bouncer {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    _guardian: Guardian,
}

fn program() -> Option<PathBuf> {
    find("pgbouncer", &["/usr/sbin".into()])
}

/// Whether pgbouncer is installed. If not, the test is to be skipped, which this says; or it fails, with
/// `LEASEPOOL_POSTGRES=required`.
#[must_use]
pub fn bouncer_installed() -> bool {
    if program().is_some() {
        return true;
    }
    assert!(!is_required(), "pgbouncer is not installed");
    eprintln!("skipped: pgbouncer is not installed");
    false
}

impl Bouncer {
    /// In front of `server`, with these settings: lines of `pgbouncer.ini`, such as `pool_mode=session`.
    pub fn before(server: &Server, settings: &str) -> Bouncer {
        let (folder, port) = (folder().unwrap(), free_port());
        let folder = folder.to_str().unwrap();
        let guardian = Guardian::new(
            "kill \"$(cat \"$1/pid\")\"\nwhile [ -e \"$1/pid\" ]; do sleep 0.02; done\nrm -rf \"$1\"",
            &[folder],
        );
        let config = format!("{folder}/pgbouncer.ini");
        let lines = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr=127.0.0.1\n\
             listen_port={port}\nunix_socket_dir=\nauth_type=any\nlogfile={folder}/log\npidfile={folder}/pid\n\
             ignore_startup_parameters=extra_float_digits,options\n{settings}\n",
            server.port
        );
        std::fs::write(&config, lines).unwrap();
        let program = program().expect("pgbouncer is installed");
        let started = as_postgres(&program)
            .args(["-q", "-d", &config])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(started.unwrap().success(), "pgbouncer does not start");
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(format!("{folder}/log"));
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Bouncer {
            port,
            _guardian: guardian,
        }
    }

    /// What a client connects with.
    pub fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }
}
