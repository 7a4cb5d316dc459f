//! Warm leases on one thread, for two seconds: prints the nanoseconds of one. `run` beside it compares the program with
//! the feature `everything` and without.
//!
//! Arguments: `paced` leaves pauses, so that there are about 200,000 leases a second, more than one connection can read
//! rows; `no-exporter` installs no recorder for metrics.

use std::time::{Duration, Instant};

use leasepool::{Database, Pool};

/// How long is measured.
const LONG: Duration = Duration::from_secs(2);
/// Between two looks at the clock.
const ROUND: u32 = 10_000;
const PAUSE: Duration = Duration::from_millis(48);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    let folder = tempfile::tempdir()?;
    #[cfg(feature = "everything")]
    watch::subscribe(!has("no-exporter"))?;
    let builder = Pool::builder(Database::file(folder.path().join("agents.db"))).max_connections(8);
    #[cfg(feature = "everything")]
    let builder = watch::all_options(builder);
    let pool = builder.build()?;
    #[cfg(feature = "everything")]
    watch::serve(&pool)?;
    let (mut leases, mut took) = (0_u32, Duration::ZERO);
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        let round = Instant::now();
        for _ in 0..ROUND {
            drop(pool.lease("alice")?);
        }
        took += round.elapsed();
        leases += ROUND;
        if has("paced") {
            std::thread::sleep(PAUSE);
        }
    }
    println!("{}", took.as_nanos() / u128::from(leases));
    Ok(())
}

#[cfg(feature = "everything")]
mod watch {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use axum::Router;
    use leasepool::{Builder, Pool, status};

    /// Twice as often as a page asks.
    const EVERY: Duration = Duration::from_millis(250);

    /// A log of events from INFO on, and an exporter for Prometheus.
    pub(super) fn subscribe(exports: bool) -> Result<(), Box<dyn std::error::Error>> {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .init();
        if exports {
            let exporter =
                metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
            thread::spawn(move || {
                loop {
                    thread::sleep(EVERY);
                    std::hint::black_box(exporter.render());
                }
            });
        }
        Ok(())
    }

    pub(super) fn all_options(builder: Builder) -> Builder {
        builder
            .opentelemetry(true)
            .overdue_after(Duration::from_secs(1))
            .slow_hold(Duration::from_millis(1))
            .max_hold(Duration::from_secs(1))
    }

    /// The status page, and a client that reads all of it again and again.
    pub(super) fn serve(pool: &Pool) -> std::io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let page = status::Page::new(pool).public();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(listener, Router::new().merge(page)).await
            })
        });
        thread::spawn(move || {
            loop {
                for path in ["/status.json", "/metrics", "/healthz", "/readyz"] {
                    if let Err(error) = get(address, path) {
                        eprintln!("{path}: {error}");
                    }
                }
                thread::sleep(EVERY);
            }
        });
        Ok(())
    }

    fn get(address: SocketAddr, path: &str) -> std::io::Result<usize> {
        let mut connection = TcpStream::connect(address)?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes())?;
        connection.read_to_end(&mut Vec::new())
    }
}
