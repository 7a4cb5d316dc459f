//! The same axum handler with leasepool and with deadpool-sqlite, over real HTTP on loopback:
//! `GET /agents/{agent}/messages/{limit}`, the last messages as JSON.
//!
//! `cargo bench -p leasepool-benches --bench http` starts each server in a process of its own, and loads it
//! from this one; the servers take turns within one run. The load shares the cores with the server, so the table also says
//! how much processor time a request costs the server alone, where the kernel tells.

mod contest;
mod reads;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::extract::{Path as UrlPath, State};
use axum::routing::get;
use axum::{Json, Router};
use contest::{Round, table};
use leasepool::rusqlite::Connection;
use leasepool::{Database, Pool, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reads::{AGENTS, CONNECTIONS, Messages, WORKERS, create, deadpool, last_messages, name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// glibc's allocator has the server's threads meet at its locks. For all contenders, and the clients.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLIENTS: usize = 64;
/// How often the clients look for answers when there are none: they come in batches, as over a network,
/// instead of each answer waking a process on the server's own cores. Part of all latencies.
const PAUSE: Duration = Duration::from_micros(300);
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
/// Messages in an answer: a look-up, and a page.
const LIMITS: [usize; 2] = [1, 20];
/// The last reads nothing: what HTTP alone costs, and so the most that any pool could reach.
const CONTENDERS: [&str; 4] = ["leasepool", "deadpool-sqlite", "no pool", "no database"];

async fn with_leasepool(
    State(pool): State<Pool>,
    UrlPath((agent, limit)): UrlPath<(String, usize)>,
) -> Json<Messages> {
    let lease = pool.lease_async(&agent).await.unwrap();
    Json(last_messages(&lease, &agent, limit).unwrap())
}

async fn with_deadpool(
    State(pool): State<deadpool_sqlite::Pool>,
    UrlPath((agent, limit)): UrlPath<(String, usize)>,
) -> Json<Messages> {
    let connection = pool.get().await.unwrap();
    let work = move |conn: &mut Connection| last_messages(conn, &agent, limit);
    Json(connection.interact(work).await.unwrap().unwrap())
}

thread_local! {
    static OWN: std::cell::OnceCell<Connection> = const { std::cell::OnceCell::new() };
}

/// No pool: each worker thread has a connection of its own.
async fn with_own(
    State(path): State<std::sync::Arc<Path>>,
    UrlPath((agent, limit)): UrlPath<(String, usize)>,
) -> Json<Messages> {
    OWN.with(|own| {
        let own = own.get_or_init(|| Connection::open(&path).unwrap());
        Json(last_messages(own, &agent, limit).unwrap())
    })
}

async fn with_nothing(UrlPath((agent, limit)): UrlPath<(String, usize)>) -> Json<Messages> {
    let body = |i| format!("message {i} of agent {agent}, which says what people say");
    Json((0..limit).map(|i| (i as i64, body(i))).collect())
}

/// The server's process: says its address, and serves until its input ends.
fn serve(contender: &str, path: &Path) {
    const ROUTE: &str = "/agents/{agent}/messages/{limit}";
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
            "no pool" => Router::new()
                .route(ROUTE, get(with_own))
                .with_state(std::sync::Arc::from(path)),
            "no database" => Router::new().route(ROUTE, get(with_nothing)),
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

    /// What the process has used so far, as far as the kernel tells.
    fn cpu_time(&self) -> Option<Duration> {
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).ok()?;
        // After the name: the fields from the 3rd on, of which the 14th and 15th are user's and system's.
        let fields = stat.rsplit(')').next()?.split_whitespace();
        let ticks: Result<u32, _> = fields.skip(11).take(2).map(str::parse::<u32>).sum();
        Some(TICK * ticks.ok()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// One client: asks, reads, and asks again, over one connection.
async fn client(address: SocketAddr, limit: usize, seed: u64, end: Instant) -> Vec<u64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.set_nodelay(true).unwrap();
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut buffer = vec![0; 1 << 14];
    loop {
        let agent = name(rng.random_range(0..AGENTS));
        let request =
            format!("GET /agents/{agent}/messages/{limit} HTTP/1.1\r\nHost: bench\r\n\r\n");
        let asked = Instant::now();
        if asked >= end {
            return latencies;
        }
        connection.write_all(request.as_bytes()).await.unwrap();
        let body = read_answer(&mut connection, &mut buffer).await;
        latencies.push(asked.elapsed().as_nanos() as u64);
        assert_eq!(body.iter().filter(|byte| **byte == b'[').count(), limit + 1);
    }
}

/// The body of a 200 with a length.
async fn read_answer<'a>(connection: &mut TcpStream, buffer: &'a mut [u8]) -> &'a [u8] {
    const LENGTH: &[u8] = b"content-length: ";
    let mut filled = 0;
    loop {
        let n = connection.read(&mut buffer[filled..]).await.unwrap();
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

fn round(
    clients: &tokio::runtime::Runtime,
    server: &Server,
    limit: usize,
    length: Duration,
) -> Round {
    let before = server.cpu_time();
    let start = Instant::now();
    let latencies = clients.block_on(async {
        let clients: Vec<_> = (0..CLIENTS as u64)
            .map(|seed| tokio::spawn(client(server.address, limit, seed, start + length)))
            .collect();
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await.unwrap());
        }
        latencies
    });
    let took = start.elapsed();
    let cpu = server.cpu_time().zip(before);
    Round::new(latencies, took, cpu.map(|(after, before)| after - before))
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
    // All on one thread, so that they take as little from the servers as they can.
    let clients = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(|| std::thread::sleep(PAUSE))
        .build()
        .unwrap();
    println!(
        "\n{CLIENTS} clients in another process, {WORKERS} server threads, {CONNECTIONS} connections; \
         medians of {ROUNDS} rounds, in turn"
    );
    for limit in LIMITS {
        let mut rounds = CONTENDERS.map(|contender| (contender, Vec::new()));
        for i in 0..=ROUNDS {
            for (server, (_, rounds)) in servers.iter().zip(&mut rounds) {
                // The first round warms up.
                let length = if i == 0 { ROUND / 2 } else { ROUND };
                let round = round(&clients, server, limit, length);
                if i > 0 {
                    rounds.push(round);
                }
            }
        }
        println!("\nlast {limit}");
        table("requests/s", &rounds);
    }
}
