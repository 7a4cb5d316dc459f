//! A chat server: many sessions, few connections. See `-- --help`.
//!
//! ```sh
//! cargo run --release -p chat_server
//! ```

mod api;
mod auth;
mod fault;
mod limit;
mod reply;
mod serve;
mod sessions;
mod store;

use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use clap::Parser;
use leasepool::{Database, Pool, Synchronous};
use limit::Limited;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sessions::Sessions;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// For SQLite, too: with the system's allocator, what each of many threads has once used stays in an
/// arena of its own, and a server that runs for long grows by that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Of each connection, in kB with a minus, as SQLite wants it: the kernel's cache is there for the rest.
const PAGE_CACHE: i64 = -512;
/// Streams at once; more are refused.
const STREAMS: usize = 1_000;
/// Connections at once to a status page on an address of its own.
const OPERATORS: usize = 10;
/// Descriptors that belong neither to the pool nor to clients: standard streams, the runtime, operators, a spare few.
const OTHER_DESCRIPTORS: usize = 40;
/// How long requests may take to end after the signal to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A chat server whose sessions borrow connections to one SQLite file, or to one each.
#[derive(Parser)]
struct Args {
    /// Where to listen; port 0 for any.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The database file; without it, one in a temporary folder.
    #[arg(long)]
    database: Option<PathBuf>,
    /// A database file for each session, in this folder, instead of one for all. Messages are numbered in
    /// each session; deleting a session deletes its file. A list of sessions opens the files of those in it,
    /// which come as the folder has them, and not the latest first. A search looks through one session,
    /// `session=ID` in its query; without this option that is ignored.
    #[arg(long, value_name = "DIR", conflicts_with = "database")]
    per_agent: Option<PathBuf>,
    /// Connections to it.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Clients of one address at once; by default, half of all. Behind a proxy, all have its address.
    #[arg(long)]
    per_address: Option<NonZeroUsize>,
    /// Serves the status page on the same address, for clients that send this token, as a bearer's or as a password.
    #[arg(long, value_name = "TOKEN", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    status_token: Option<String>,
    /// Where to serve the status page without a token: on loopback. By default on the same address, if that is on
    /// loopback, or else nowhere.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "status_token", value_parser = on_loopback)]
    status: Option<SocketAddr>,
    /// Sets the process's own limit of descriptors.
    #[arg(long)]
    fd_limit: Option<u64>,
    /// How long a request waits for a connection.
    #[arg(long, default_value_t = 2_000)]
    lease_timeout_ms: u64,
    /// The pause after each word of a reply.
    #[arg(long, default_value_t = 20)]
    stream_delay_ms: u64,
}

/// What all requests share.
#[derive(Clone)]
struct App {
    pool: Pool,
    sessions: Sessions,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
    delay: Duration,
    accepted: Arc<AtomicU64>,
}

fn on_loopback(text: &str) -> Result<SocketAddr, AnyError> {
    let address: SocketAddr = text.parse()?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(
            "the status page shows agents' ids and source lines to every client: \
                      give an address of loopback, or --status-token"
                .into(),
        ),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let served = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(AnyError::from)
        .and_then(|runtime| runtime.block_on(serve(args)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat_server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Args) -> Result<(), AnyError> {
    if let Some(limit) = args.fd_limit {
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(limit),
                maximum,
            },
        )?;
    }
    let folder = tempfile::tempdir()?;
    let (database, sessions) = match args.per_agent {
        Some(folder) => {
            println!("databases in {}", folder.display());
            (Database::per_agent(&folder), Sessions::PerAgent)
        }
        None => {
            let path = args
                .database
                .unwrap_or_else(|| folder.path().join("chat.db"));
            println!("database {}", path.display());
            (Database::file(path), Sessions::InOneFile)
        }
    };
    let pool = Pool::builder(database)
        .max_connections(args.connections)
        .lease_timeout(Duration::from_millis(args.lease_timeout_ms))
        .leases_per_agent(args.connections.div_ceil(2))
        .synchronous(Synchronous::Normal)
        .pragma("cache_size", PAGE_CACHE)
        .setup(store::set_up)
        .build()?;
    let app = App {
        pool: pool.clone(),
        sessions,
        streams: Arc::new(Semaphore::new(STREAMS)),
        stop: CancellationToken::new(),
        delay: Duration::from_millis(args.stream_delay_ms),
        accepted: Arc::default(),
    };

    // What the pool may need is not for clients to take.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20) as usize;
    let reserved = pool.fd_ceiling() + OTHER_DESCRIPTORS;
    let clients = limit.checked_sub(reserved).filter(|n| *n > 0);
    let clients = clients.ok_or_else(|| format!("{reserved} descriptors are not enough"))?;
    let of_address = args
        .per_address
        .map_or(clients.div_ceil(2), NonZeroUsize::get);
    let listener = TcpListener::bind(args.listen).await?;
    let (page, chat) = (api::status(&app), api::router(&app));
    let (router, aside) = match (args.status_token, args.status) {
        (Some(token), _) => {
            let page = auth::behind_token(page.public(), token);
            (chat.nest_service("/status", page), None)
        }
        (None, Some(address)) => {
            let aside = TcpListener::bind(address).await?;
            (chat, Some((aside, page.guarded(auth::is_for_loopback))))
        }
        (None, None) if listener.local_addr()?.ip().is_loopback() => {
            let page = page.guarded(auth::is_for_loopback);
            (chat.nest_service("/status", page), None)
        }
        (None, None) => (chat, None),
    };
    if let Some((listener, status)) = aside {
        println!("status page on http://{}/", listener.local_addr()?);
        let stopped = app.stop.clone();
        let listener = Limited::new(listener, OPERATORS, OPERATORS);
        tokio::spawn(serve::serve(listener, status, stopped));
    }
    println!("listening on http://{}", listener.local_addr()?);
    println!("at most {} descriptors on the database", pool.fd_ceiling());
    std::io::stdout().flush()?;

    let most = Arc::new(AtomicUsize::new(0));
    let watch = tokio::spawn(watch(pool.clone(), Arc::clone(&most)));
    tokio::spawn(stop_on_signal(app.stop.clone()));
    let listener = Limited::new(listener, clients, of_address);
    let serving = serve::serve(listener, router, app.stop.clone());
    let overtime = async {
        app.stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        () = serving => {}
        () = overtime => eprintln!("some requests did not end in time"),
    }
    watch.abort();
    pool.close_async().await?;
    println!(
        "{} messages; at most {} of {} descriptors on the database; {} left",
        app.accepted.load(Relaxed),
        most.load(Relaxed),
        pool.fd_ceiling(),
        pool.descriptors().map_or("?".to_owned(), |n| n.to_string()),
    );
    Ok(())
}

/// The first signal asks to stop, the second one does not ask.
async fn stop_on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    for first in [true, false] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if first {
            println!("stopping");
            stop.cancel();
        }
    }
    std::process::exit(130)
}

async fn watch(pool: Pool, most: Arc<AtomicUsize>) {
    loop {
        most.fetch_max(pool.descriptors().unwrap_or(0), Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
