//! A proxy between a pool and its server, which can stop to answer.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::thread;

use parking_lot::Mutex;

/// What the proxy does with bytes and with new connections.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    /// It passes everything on.
    Open = 0,
    /// It swallows everything. New connections are accepted, and get no answer.
    BlackHole = 1,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    mode: Arc<AtomicU8>,
    clients: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    /// In front of a server on this port.
    pub(crate) fn before(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(Mode::Open as u8));
        let theirs = Arc::clone(&mode);
        let clients = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&clients);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else {
                    continue;
                };
                all.lock().push(client.try_clone().unwrap());
                pass(&client, &upstream, &theirs);
                pass(&upstream, &client, &theirs);
            }
        });
        Proxy {
            port,
            mode,
            clients,
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, SeqCst);
    }

    /// Ends all connections that clients have now.
    pub(crate) fn cut(&self) {
        for client in self.clients.lock().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }
}

fn pass(from: &TcpStream, to: &TcpStream, mode: &Arc<AtomicU8>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let mode = Arc::clone(mode);
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if mode.load(SeqCst) == Mode::Open as u8 && to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
