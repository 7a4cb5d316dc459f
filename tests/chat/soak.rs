//! Clients that send, stream, hang up, read and search at random, for a while:
//!
//! ```sh
//! LEASEPOOL_SOAK_SECONDS=600 cargo test --release -p chat_server soak -- --nocapture
//! ```

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::client::{answer, request, say};
use crate::server::Server;

const CLIENTS: usize = 100;

#[derive(Default)]
struct Seen {
    /// Acknowledged messages: id and text.
    acknowledged: Mutex<HashMap<i64, String>>,
    requests: AtomicUsize,
    hung_up: AtomicUsize,
    busy: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Seen {
    fn status(&self, what: &str, status: u16) {
        self.requests.fetch_add(1, SeqCst);
        match status {
            200 | 204 | 404 => {}
            503 => _ = self.busy.fetch_add(1, SeqCst),
            other => self.wrong.lock().unwrap().push(format!("{what}: {other}")),
        }
    }
}

fn client(server: &Server, seen: &Seen, done: &AtomicBool, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut said = 0;
    while !done.load(SeqCst) {
        let session = format!("session-{}", rng.random_range(0..500));
        let simple = |path: String| {
            let got = request(server.address, "GET", &path, None).and_then(answer);
            seen.status(&path, got.map_or(0, |answer| answer.status));
        };
        match rng.random_range(0..10) {
            0 => simple(format!("/api/sessions/{session}/messages?limit=20")),
            1 => simple("/api/sessions?limit=20".to_owned()),
            2 => simple(format!("/api/search?q=word{}", rng.random_range(0..50))),
            _ => {
                let text = format!("client {seed} says word{} {said}", rng.random_range(0..50));
                said += 1;
                let stay = match rng.random_bool(0.4) {
                    true => rng.random_range(0..20),
                    false => usize::MAX,
                };
                let Ok(mut stream) = say(server.address, &session, &text) else {
                    seen.status("say", 0);
                    continue;
                };
                seen.status("say", stream.status);
                for (event, data) in stream.by_ref().take(stay) {
                    if event == "accepted" {
                        let id = data.parse().unwrap();
                        seen.acknowledged.lock().unwrap().insert(id, text.clone());
                    }
                }
                if stay < 20 {
                    seen.hung_up.fetch_add(1, SeqCst);
                }
            }
        }
        // People think before they answer; a client that does not would use up the ports.
        thread::sleep(Duration::from_millis(rng.random_range(0..200)));
    }
}

#[test]
fn soak() {
    let seconds = std::env::var("LEASEPOOL_SOAK_SECONDS");
    let seconds: f64 = seconds.map_or(6.0, |s| s.parse().unwrap());
    let mut server = Server::start(&[
        "--fd-limit",
        "256",
        "--per-address",
        "256",
        "--connections",
        "8",
    ]);
    let (seen, done) = (Seen::default(), AtomicBool::new(false));
    let start = Instant::now();
    let mut most = 0;
    // Minutes since the start, kB.
    let mut memory: Vec<(f64, f64)> = Vec::new();
    thread::scope(|scope| {
        for seed in 0..CLIENTS as u64 {
            let (server, seen, done) = (&server, &seen, &done);
            scope.spawn(move || client(server, seen, done, seed));
        }
        while start.elapsed().as_secs_f64() < seconds {
            most = most.max(server.descriptors());
            let minutes = start.elapsed().as_secs_f64() / 60.0;
            memory.push((minutes, server.memory() as f64));
            thread::sleep(Duration::from_millis(50));
        }
        done.store(true, SeqCst);
    });
    server.terminate();
    let said = server.ended();
    let stored: HashMap<i64, String> = server.stored().into_iter().map(|m| (m.0, m.3)).collect();
    let acknowledged = seen.acknowledged.into_inner().unwrap();
    let lost = acknowledged
        .iter()
        .filter(|(id, text)| stored.get(id) != Some(text))
        .count();
    let late: Vec<_> = memory
        .iter()
        .filter(|(t, _)| *t > seconds / 60.0 / 5.0)
        .copied()
        .collect();
    let slope = slope(&late);
    let least = late.iter().map(|m| m.1).fold(f64::MAX, f64::min);
    let greatest = late.iter().map(|m| m.1).fold(0.0, f64::max);
    let wrong = seen.wrong.into_inner().unwrap();
    println!("{said}");
    println!("seconds                       {seconds:.0}");
    println!("clients                       {CLIENTS}");
    println!(
        "requests                      {}",
        seen.requests.into_inner()
    );
    println!(
        "hung up in mid-stream         {}",
        seen.hung_up.into_inner()
    );
    println!("503                           {}", seen.busy.load(SeqCst));
    println!("other failures                {}", wrong.len());
    println!(
        "acknowledged, lost            {}, {lost}",
        acknowledged.len()
    );
    println!("descriptors on the database   at most {most} of 19");
    let tenths = memory
        .chunks(memory.len().div_ceil(10))
        .filter_map(|tenth| tenth.last());
    let tenths: Vec<_> = tenths.map(|(_, kb)| format!("{kb:.0}")).collect();
    println!("memory at each tenth, kB      {}", tenths.join(" "));
    println!("memory in the last 4/5, kB    {least:.0} to {greatest:.0}, {slope:+.0} a minute");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(seen.busy.into_inner(), 0);
    assert_eq!(lost, 0);
    assert!(acknowledged.len() > CLIENTS);
    assert!(most > 2 && most <= 19);
    if seconds >= 300.0 {
        // Flat: what it grows by in all that time is less than a connection's cache.
        let grown = slope * (seconds / 60.0 * 0.8);
        assert!(grown < 2_000.0, "{grown} kB");
    }
}

/// Of the line that fits best.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
    let covariance: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    let variance: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    covariance / variance
}
