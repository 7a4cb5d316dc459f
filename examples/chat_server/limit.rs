//! A listener that has no more than so many clients at once; the others wait to be accepted. A client whose address has
//! too many already is sent away.
//! It knows no HTTP.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
    addresses: Arc<Addresses>,
}

/// A client, and its place.
pub(crate) struct Client {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
    _counted: Counted,
}

/// How many clients each address has; no more than there are places.
struct Addresses {
    most: usize,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// A client of an address, as long as it is there.
struct Counted {
    address: IpAddr,
    addresses: Arc<Addresses>,
}

impl Addresses {
    fn count(self: &Arc<Self>, address: IpAddr) -> Option<Counted> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Counted {
            address,
            addresses: Arc::clone(self),
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let clients = &self.addresses.clients;
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.address);
            }
        }
    }
}

impl Limited {
    /// `clients` at once, and `of_address` of one address.
    pub(crate) fn new(listener: TcpListener, clients: usize, of_address: usize) -> Self {
        Limited {
            listener,
            places: Arc::new(Semaphore::new(clients)),
            addresses: Arc::new(Addresses {
                most: of_address,
                clients: Mutex::default(),
            }),
        }
    }
}

impl Listener for Limited {
    type Io = Client;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Client, SocketAddr) {
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Some(counted) = self.addresses.count(address.ip()) {
                let client = Client {
                    stream,
                    _place: place,
                    _counted: counted,
                };
                return (client, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
