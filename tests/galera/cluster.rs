//! Nodes of MariaDB that replicate by Galera.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};

use crate::guardian::Guardian;

const PROVIDER: &str = "/usr/lib/galera/libgalera_smm.so";
/// Longer than a node may take to join.
const JOINING: Duration = Duration::from_secs(180);

/// A running cluster. Dropping it stops it and removes its files.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    folder: PathBuf,
    _guardian: Guardian,
}

struct Node {
    /// For clients.
    port: u16,
    /// For the group, for incremental and for full transfers of state.
    ports: [u16; 3],
    process: Option<Child>,
}

/// Whether the test is asked for. If not, it says so.
pub(crate) fn is_asked_for() -> bool {
    let asked = std::env::var_os("LEASEPOOL_GALERA").is_some();
    if !asked {
        eprintln!("skipped: it runs with LEASEPOOL_GALERA=1");
    }
    asked
}

impl Cluster {
    pub(crate) fn start(size: usize) -> Cluster {
        assert!(
            Path::new(PROVIDER).exists(),
            "install mariadb-server, galera-4 and rsync"
        );
        let folder = tempfile::tempdir().unwrap().keep();
        run(Command::new("chown").arg("mysql").arg(&folder));
        // Each node is a process group, with the shells that transfer its state.
        let guardian = Guardian::new(
            "for pid in $(cat \"$1\"/*.group); do kill -9 -- \"-$pid\"; done\n\
             sleep 0.2\nrm -rf \"$1\"",
            &[folder.to_str().unwrap()],
        );
        let nodes = (0..size).map(|_| Node {
            port: free_port(),
            ports: [free_port(), free_port(), free_port()],
            process: None,
        });
        let mut cluster = Cluster {
            nodes: nodes.collect(),
            folder,
            _guardian: guardian,
        };
        for node in 0..size {
            cluster.install(node);
        }
        for node in 0..size {
            cluster.launch(node, node == 0);
            cluster.wait_for(node);
        }
        cluster
    }

    pub(crate) fn nodes(&self) -> std::ops::Range<usize> {
        0..self.nodes.len()
    }

    fn install(&self, node: usize) {
        run(Command::new("mariadb-install-db")
            .args(["--no-defaults", "--user=mysql", "--skip-test-db"])
            .arg("--auth-root-authentication-method=normal")
            .arg(format!("--datadir={}", self.data(node))));
    }

    fn data(&self, node: usize) -> String {
        self.folder.join(format!("{node}")).display().to_string()
    }

    /// Starts a node: the first of a new cluster, or one that joins.
    fn launch(&mut self, node: usize, is_first: bool) {
        let (data, folder) = (self.data(node), self.folder.display());
        let members: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.ports[0]))
            .collect();
        let members = if is_first {
            String::new()
        } else {
            members.join(",")
        };
        let Node { port, ports, .. } = &self.nodes[node];
        let [group, incremental, full] = ports;
        let log = std::fs::File::create(self.folder.join(format!("{node}.log"))).unwrap();
        let process = Command::new("mariadbd")
            .args(["--no-defaults", "--user=mysql", "--bind-address=127.0.0.1"])
            .args([
                "--binlog-format=ROW",
                "--default-storage-engine=InnoDB",
                "--innodb-autoinc-lock-mode=2",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=16M",
                "--wsrep-on=ON",
                "--wsrep-cluster-name=leases",
                "--wsrep-sst-method=rsync",
            ])
            .arg(format!("--datadir={data}"))
            .arg(format!("--port={port}"))
            .arg(format!("--socket={folder}/{node}.sock"))
            .arg(format!("--pid-file={folder}/{node}.pid"))
            .arg(format!("--wsrep-provider={PROVIDER}"))
            .arg(format!("--wsrep-cluster-address=gcomm://{members}"))
            .arg(format!("--wsrep-node-name=n{node}"))
            .arg(format!("--wsrep-node-address=127.0.0.1:{group}"))
            .arg(format!("--wsrep-sst-receive-address=127.0.0.1:{full}"))
            .arg(format!(
                "--wsrep-provider-options=base_host=127.0.0.1;base_port={group};\
                 gmcast.listen_addr=tcp://127.0.0.1:{group};ist.recv_addr=127.0.0.1:{incremental};gcache.size=16M"
            ))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        std::fs::write(self.group_file(node), process.id().to_string()).unwrap();
        self.nodes[node].process = Some(process);
    }

    fn group_file(&self, node: usize) -> PathBuf {
        self.folder.join(format!("{node}.group"))
    }

    /// Waits until a node takes statements.
    fn wait_for(&self, node: usize) {
        let begun = Instant::now();
        loop {
            if let Ok(mut conn) = Conn::new(self.root(node))
                && is_ready(&mut conn).is_ok_and(|ready| ready)
            {
                return;
            }
            let log = || std::fs::read_to_string(self.folder.join(format!("{node}.log")));
            assert!(begun.elapsed() < JOINING, "{:?}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends a node as a failing machine does.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(mut process) = self.nodes[node].process.take() {
            let group = format!("-{}", process.id());
            run(Command::new("kill").args(["-9", "--", &group]));
            process.wait().unwrap();
            std::fs::remove_file(self.group_file(node)).unwrap();
        }
    }

    /// Lets a node that was killed join again. Returns when it is ready.
    pub(crate) fn rejoin(&mut self, node: usize) {
        self.launch(node, false);
        self.wait_for(node);
    }

    fn options(&self, node: usize, user: &str) -> OptsBuilder {
        OptsBuilder::new()
            .ip_or_hostname(Some("127.0.0.1"))
            .tcp_port(self.nodes[node].port)
            .user(Some(user))
            .prefer_socket(false)
            .tcp_connect_timeout(Some(Duration::from_secs(1)))
    }

    pub(crate) fn root(&self, node: usize) -> OptsBuilder {
        let timeout = Some(Duration::from_secs(10));
        self.options(node, "root").read_timeout(timeout)
    }

    pub(crate) fn app(&self, node: usize) -> OptsBuilder {
        // Sent after each reset, too: a reset keeps the database that an agent chose.
        self.options(node, "app").init(vec!["USE app"])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes() {
            self.kill(node);
        }
    }
}

/// Whether the node is part of a cluster that has a majority.
pub(crate) fn is_ready(conn: &mut Conn) -> mysql::Result<bool> {
    let status: Option<(String, String)> = conn.query_first("SHOW STATUS LIKE 'wsrep_ready'")?;
    Ok(status.is_some_and(|(_, ready)| ready == "ON"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {said}");
}
