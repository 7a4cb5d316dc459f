//! The same axum handler with leasepool and with deadpool-sqlite, over real HTTP on loopback:
//! `GET /agents/{agent}/messages`, the last 20 messages as JSON.
//!
//! `cargo bench --bench http` starts each server in a process of its own, and loads it from this one; the
//! servers take turns within one run.

mod reads;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::extract::{Path as UrlPath, State};
use axum::routing::get;
use axum::{Json, Router};
use leasepool::rusqlite::Connection;
use leasepool::{Database, Pool, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reads::{
    AGENTS, CONNECTIONS, Messages, Round, WORKERS, create, deadpool, last_messages, name, table,
};

const CLIENTS: usize = 32;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
const CONTENDERS: [&str; 2] = ["leasepool", "deadpool-sqlite"];

async fn with_leasepool(
    State(pool): State<Pool>,
    UrlPath(agent): UrlPath<String>,
) -> Json<Messages> {
    let lease = pool.lease_async(&agent).await.unwrap();
    Json(last_messages(&lease, &agent).unwrap())
}

async fn with_deadpool(
    State(pool): State<deadpool_sqlite::Pool>,
    UrlPath(agent): UrlPath<String>,
) -> Json<Messages> {
    let connection = pool.get().await.unwrap();
    let work = move |conn: &mut Connection| last_messages(conn, &agent);
    Json(connection.interact(work).await.unwrap().unwrap())
}

/// The server's process: says its address, and serves until its input ends.
fn serve(contender: &str, path: &Path) {
    const ROUTE: &str = "/agents/{agent}/messages";
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let router = match contender {
            "leasepool" => {
                let pool = Pool::builder(Database::file(path))
                    .max_connections(CONNECTIONS)
                    .synchronous(Synchronous::Normal)
                    .build()
                    .unwrap();
                Router::new()
                    .route(ROUTE, get(with_leasepool))
                    .with_state(pool)
            }
            _ => {
                let pool = deadpool(path);
                Router::new()
                    .route(ROUTE, get(with_deadpool))
                    .with_state(pool)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let ended = tokio::task::spawn_blocking(|| {
            let _ = std::io::stdin().read(&mut [0]);
        });
        tokio::select! {
            served = axum::serve(listener, router) => served.unwrap(),
            _ = ended => {}
        }
        std::process::exit(0);
    });
}

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(contender: &str, path: &Path) -> Server {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("serve")
            .arg(contender)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap();
        Server { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// One client: asks, reads, and asks again, over one connection.
fn client(address: SocketAddr, seed: u64, done: &AtomicBool) -> Vec<u64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_nodelay(true).unwrap();
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut buffer = vec![0; 1 << 14];
    while !done.load(Relaxed) {
        let agent = rng.random_range(0..AGENTS);
        let request = format!(
            "GET /agents/{}/messages HTTP/1.1\r\nHost: bench\r\n\r\n",
            name(agent)
        );
        let asked = Instant::now();
        connection.write_all(request.as_bytes()).unwrap();
        let body = read_answer(&mut connection, &mut buffer);
        latencies.push(asked.elapsed().as_nanos() as u64);
        assert_eq!(body.iter().filter(|byte| **byte == b'[').count(), 21);
    }
    latencies
}

/// The body of a 200 with a length.
fn read_answer<'a>(connection: &mut TcpStream, buffer: &'a mut [u8]) -> &'a [u8] {
    const LENGTH: &[u8] = b"content-length: ";
    let mut filled = 0;
    loop {
        let n = connection.read(&mut buffer[filled..]).unwrap();
        assert!(n > 0, "the server hung up");
        filled += n;
        let seen = &buffer[..filled];
        let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        assert!(seen.starts_with(b"HTTP/1.1 200"));
        let at = seen
            .windows(LENGTH.len())
            .position(|w| w == LENGTH)
            .unwrap()
            + LENGTH.len();
        let digits = seen[at..].iter().take_while(|byte| byte.is_ascii_digit());
        let length = digits.fold(0, |n, digit| n * 10 + usize::from(digit - b'0'));
        if filled == end + 4 + length {
            return &buffer[end + 4..filled];
        }
    }
}

fn round(address: SocketAddr, length: Duration) -> Round {
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let latencies = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS as u64)
            .map(|seed| {
                let done = &done;
                scope.spawn(move || client(address, seed, done))
            })
            .collect();
        std::thread::sleep(length);
        done.store(true, Relaxed);
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    Round::new(latencies, start.elapsed())
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    if let [_, verb, contender, path] = &args[..]
        && verb == "serve"
    {
        return serve(contender, Path::new(path));
    }
    let folder = tempfile::tempdir().unwrap();
    let servers = CONTENDERS.map(|contender| {
        let path = folder.path().join(format!("{contender}.db"));
        create(&path).unwrap();
        Server::start(contender, &path)
    });
    let mut rounds = CONTENDERS.map(|contender| (contender, Vec::new()));
    for i in 0..=ROUNDS {
        for (server, (_, rounds)) in servers.iter().zip(&mut rounds) {
            // The first round warms up.
            let round = round(server.address, if i == 0 { ROUND / 2 } else { ROUND });
            if i > 0 {
                rounds.push(round);
            }
        }
    }
    println!(
        "\n{CLIENTS} clients in another process, {WORKERS} server threads, {CONNECTIONS} connections; \
         medians of {ROUNDS} rounds, in turn"
    );
    table("requests/s", &rounds);
}
