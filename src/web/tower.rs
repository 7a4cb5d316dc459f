//! The feature `tower`: a layer that puts the [`Agent`](super::Agent) of a request into its extensions.
//! It neither leases nor answers.

use std::fmt;
use std::task::{Context, Poll};

use http::Request;
use http::request::Parts;
use tower_layer::Layer;
use tower_service::Service;

use super::{AgentSource, Agents, RequestParts, sealed};
use crate::pool::Pool;
use crate::pool::pooled::{Backend, Sqlite};

/// Puts the [`Agent`](super::Agent) of each request into the request's extensions. axum handlers take it as
/// an extractor; other handlers get it with `request.extensions().get::<Agent>()`.
///
/// ```
/// use leasepool::web::{AgentSource, LeaseLayer};
/// use leasepool::{Database, Pool};
///
/// # fn main() -> Result<(), leasepool::Error> {
/// let pool = Pool::builder(Database::memory()).build()?;
/// let layer = LeaseLayer::new(pool, AgentSource::header("x-agent"));
/// # Ok(())
/// # }
/// ```
pub struct LeaseLayer<B: Backend = Sqlite>(Agents<Parts, B>);

/// The service that [`LeaseLayer`] makes.
pub struct LeaseService<S, B: Backend = Sqlite> {
    inner: S,
    agents: Agents<Parts, B>,
}

impl<B: Backend> fmt::Debug for LeaseLayer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseLayer").field(&self.0).finish()
    }
}

impl<S: fmt::Debug, B: Backend> fmt::Debug for LeaseService<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseService")
            .field("inner", &self.inner)
            .field("agents", &self.agents)
            .finish()
    }
}

impl<B: Backend> Clone for LeaseLayer<B> {
    fn clone(&self) -> Self {
        LeaseLayer(self.0.clone())
    }
}

impl<S: Clone, B: Backend> Clone for LeaseService<S, B> {
    fn clone(&self) -> Self {
        LeaseService {
            inner: self.inner.clone(),
            agents: self.agents.clone(),
        }
    }
}

impl<B: Backend> LeaseLayer<B> {
    /// A layer for agents of `pool`, found by `source`.
    #[track_caller]
    pub fn new(pool: Pool<B>, source: AgentSource<Parts>) -> Self {
        LeaseLayer(Agents::new(pool, source))
    }
}

impl<S, B: Backend> Layer<S> for LeaseLayer<B> {
    type Service = LeaseService<S, B>;

    fn layer(&self, inner: S) -> LeaseService<S, B> {
        LeaseService {
            inner,
            agents: self.0.clone(),
        }
    }
}

impl<S, B: Backend, Body> Service<Request<Body>> for LeaseService<S, B>
where
    S: Service<Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let (mut parts, body) = request.into_parts();
        let agent = self.agents.of(&parts);
        parts.extensions.insert(agent);
        self.inner.call(Request::from_parts(parts, body))
    }
}

impl sealed::Sealed for Parts {}

impl RequestParts for Parts {
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers
            .get_all(name)
            .into_iter()
            .map(|value| value.as_bytes())
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn with_extension<T: Send + Sync + 'static, U>(&self, f: impl FnOnce(&T) -> U) -> Option<U> {
        self.extensions.get::<T>().map(f)
    }
}
