//! Three nodes behind a proxy: agents spread, move while they are written to, and a node that is killed moves only its own.
//! The proxies are real: without nginx or haproxy this is not tested, unless `LEASEPOOL_PROXIES` is set.

#[path = "../src/client.rs"]
mod client;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use client::{Response, encoded, send};

const AGENTS: usize = 300;
/// How many of them are handed over.
const MOVES: usize = 100;
const CLIENTS: usize = 4;
/// Longer than anything may take; only a failing test waits for so long.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn behind_nginx() {
    behind(&Proxy {
        program: "nginx",
        version: "-v",
        config: include_str!("../nginx.conf"),
        port: "127.0.0.1:7000",
        arguments: |folder, config| {
            let folder = folder.to_str().unwrap();
            // One process, so that it ends with the test.
            let one = "master_process off;";
            ["-p", folder, "-c", config, "-g", one]
                .map(String::from)
                .to_vec()
        },
    });
}

#[test]
fn behind_haproxy() {
    behind(&Proxy {
        program: "haproxy",
        version: "-v",
        config: include_str!("../haproxy.cfg"),
        port: "127.0.0.1:7100",
        arguments: |_, config| ["-db", "-f", config].map(String::from).to_vec(),
    });
}

struct Proxy {
    program: &'static str,
    version: &'static str,
    config: &'static str,
    /// Where it listens, by its configuration.
    port: &'static str,
    arguments: fn(&Path, &str) -> Vec<String>,
}

impl Proxy {
    fn is_there(&self) -> bool {
        let tried = Command::new(self.program).arg(self.version).output();
        match tried {
            Ok(output) if output.status.success() => true,
            tried if std::env::var_os("LEASEPOOL_PROXIES").is_some() => {
                panic!("{}: {tried:?}", self.program)
            }
            _ => {
                eprintln!("no {}: the nodes were not tested behind it", self.program);
                false
            }
        }
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    nodes: Vec<(String, Option<Process>)>,
    /// Where clients send their requests.
    front: String,
    /// How often a client was sent on. A proxy that does so itself leaves nothing to count.
    sent_on: AtomicUsize,
    _proxy: Process,
    _folder: TempDir,
}

fn start_node(folder: &Path, i: usize) -> (String, Option<Process>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_node"))
        .args(["--listen", "127.0.0.1:0"])
        .arg("--data")
        .arg(folder.join(format!("node-{i}")))
        .arg("--shared")
        .arg(folder.join("shared"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let name = line
        .trim()
        .strip_prefix("listening on ")
        .expect("it says where");
    (name.to_owned(), Some(Process(child)))
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Cluster {
    fn start(proxy: &Proxy) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let nodes: Vec<_> = (1..=3).map(|i| start_node(folder.path(), i)).collect();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = free.local_addr().unwrap().to_string();
        drop(free);
        let mut config = proxy.config.replace(proxy.port, &front);
        for (i, (name, _)) in nodes.iter().enumerate() {
            config = config.replace(&format!("127.0.0.1:{}", 7001 + i), name);
        }
        let path = folder.path().join("proxy.conf");
        std::fs::write(&path, config).unwrap();
        let arguments = (proxy.arguments)(folder.path(), path.to_str().unwrap());
        let log = std::fs::File::create(folder.path().join("proxy.log")).unwrap();
        let process = Command::new(proxy.program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let cluster = Cluster {
            nodes,
            front,
            sent_on: AtomicUsize::new(0),
            _proxy: Process(process),
            _folder: folder,
        };
        eventually("the proxy listens", || {
            TcpStream::connect(&cluster.front).is_ok()
        });
        eventually("all nodes are in use", || {
            let answer = send(&cluster.front, "GET", "/agents/first/messages", "", b"");
            answer.is_ok_and(|answer| [200, 421].contains(&answer.status))
        });
        cluster
    }

    /// A client: it goes where a 421 sends it.
    fn ask(&self, method: &str, agent: &str, body: &str) -> Response {
        let path = format!("/agents/{}/messages", encoded(agent));
        let mut header = String::new();
        loop {
            let answer = send(&self.front, method, &path, &header, body.as_bytes()).unwrap();
            match answer.header("x-leasepool-node") {
                Some(node) if answer.status == 421 => {
                    header = format!("x-leasepool-node: {node}\r\n");
                    self.sent_on.fetch_add(1, SeqCst);
                }
                _ => return answer,
            }
        }
    }

    fn messages(&self, agent: &str) -> Vec<String> {
        let answer = self.ask("GET", agent, "");
        assert_eq!(answer.status, 200, "{agent}: {answer:?}");
        answer.body.lines().map(str::to_owned).collect()
    }

    /// Which node has which agent.
    fn directory(&self) -> BTreeMap<String, String> {
        let (name, _) = self
            .nodes
            .iter()
            .find(|(_, process)| process.is_some())
            .unwrap();
        let answer = send(name, "GET", "/admin/directory", "", b"").unwrap();
        let lines = answer
            .body
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap());
        lines
            .filter(|(agent, _)| *agent != "first")
            .map(|(agent, node)| (agent.to_owned(), node.to_owned()))
            .collect()
    }

    fn agents_of(&self, node: &str) -> usize {
        self.directory()
            .values()
            .filter(|found| *found == node)
            .count()
    }
}

/// Ids, some of which are not as they stand in a path or in the name of a file.
fn agent(i: usize) -> String {
    match i % 10 {
        0 => format!("Agent_{i}, é"),
        _ => format!("agent-{i}"),
    }
}

fn behind(proxy: &Proxy) {
    if !proxy.is_there() {
        return;
    }
    let mut cluster = Cluster::start(proxy);
    let agents: Vec<String> = (0..AGENTS).map(agent).collect();
    let acknowledged = Mutex::new(HashMap::<String, Vec<String>>::new());
    let (next, moved) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    // Clients write to all agents, and most to those that are being handed over.
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let n = next.fetch_add(1, SeqCst);
                    let agent = match n % 3 {
                        _ if n < AGENTS => &agents[n],
                        0 => &agents[n % AGENTS],
                        i => &agents[(moved.load(SeqCst) + i - 1) % AGENTS],
                    };
                    let message = format!("message-{n}");
                    let answer = cluster.ask("POST", agent, &message);
                    if answer.status != 201 {
                        done.store(true, SeqCst);
                    }
                    assert_eq!(answer.status, 201, "{agent}: {answer:?}");
                    let mut acknowledged = acknowledged.lock().unwrap();
                    acknowledged.entry(agent.clone()).or_default().push(message);
                }
            });
        }
        eventually("each agent has a message", || {
            next.load(SeqCst) > AGENTS + CLIENTS || done.load(SeqCst)
        });
        let before = cluster.directory();
        assert_eq!(before.len(), AGENTS);
        let begun = Instant::now();
        for agent in &agents[..MOVES] {
            let from = &before[agent];
            let at = cluster
                .nodes
                .iter()
                .position(|(name, _)| name == from)
                .unwrap();
            let to = &cluster.nodes[(at + 1) % 3].0;
            let path = format!("/admin/agents/{}/hand-over?to={to}", encoded(agent));
            let answer = send(from, "POST", &path, "", b"").unwrap();
            if answer.status != 200 {
                done.store(true, SeqCst);
            }
            assert_eq!(answer.status, 200, "{agent}: {answer:?}");
            moved.fetch_add(1, SeqCst);
        }
        let took = begun.elapsed();
        done.store(true, SeqCst);
        let after = cluster.directory();
        let changed = agents
            .iter()
            .filter(|agent| before[*agent] != after[*agent]);
        assert_eq!(changed.count(), MOVES);
        println!("{}: {MOVES} hand-overs in {took:?}", proxy.program);
    });
    let check = |cluster: &Cluster| {
        let acknowledged = acknowledged.lock().unwrap();
        let mut count = 0;
        for (agent, messages) in acknowledged.iter() {
            let (mut found, mut expected) = (cluster.messages(agent), messages.clone());
            found.sort();
            expected.sort();
            assert_eq!(
                found, expected,
                "{agent}: each acknowledged message is there once"
            );
            count += found.len();
        }
        count
    };
    let count = check(&cluster);
    let rate = count as f64 / started.elapsed().as_secs_f64();
    println!(
        "{}: {count} acknowledged messages ({rate:.0} a second), 0 lost; clients were sent on {} times",
        proxy.program,
        cluster.sent_on.load(SeqCst)
    );

    // A node is killed. It cannot be asked for copies, so what it has was copied before.
    for (name, _) in &cluster.nodes {
        let answer = send(name, "POST", "/admin/backup", "", b"").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let before = cluster.directory();
    let dead = cluster.nodes[0].0.clone();
    let its = cluster.agents_of(&dead);
    assert!(its > AGENTS / 10, "agents are spread: {its}");
    // SIGKILL.
    cluster.nodes[0].1 = None;
    let path = format!("/admin/nodes/{dead}/dead");
    send(&cluster.nodes[1].0, "POST", &path, "", b"").unwrap();
    // The other agents never notice.
    for (agent, _) in before.iter().filter(|(_, node)| **node != dead) {
        assert!(!cluster.messages(agent).is_empty());
    }
    eventually("the proxy has noticed", || {
        let mut statuses = before
            .keys()
            .map(|agent| cluster.ask("GET", agent, "").status);
        statuses.all(|status| status == 200)
    });
    assert_eq!(check(&cluster), count);
    let after = cluster.directory();
    let changed: Vec<_> = before
        .keys()
        .filter(|agent| before[*agent] != after[*agent])
        .collect();
    assert!(changed.iter().all(|agent| before[*agent] == dead));
    assert_eq!(changed.len(), its);
    let now = [1, 2].map(|i| cluster.agents_of(&cluster.nodes[i].0));
    println!(
        "{}: {its} agents of the killed node moved, no other; now {now:?}",
        proxy.program
    );
}
