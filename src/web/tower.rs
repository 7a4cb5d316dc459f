//! The feature `tower`: a layer that puts the [`Agent`](super::Agent) of a request into its extensions.
//! It neither leases nor answers.

use std::task::{Context, Poll};

use http::Request;
use http::request::Parts;
use tower_layer::Layer;
use tower_service::Service;

use super::{AgentSource, Agents, RequestParts, sealed};
use crate::pool::Pool;

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
#[derive(Debug, Clone)]
pub struct LeaseLayer(Agents<Parts>);

/// The service that [`LeaseLayer`] makes.
#[derive(Debug, Clone)]
pub struct LeaseService<S> {
    inner: S,
    agents: Agents<Parts>,
}

impl LeaseLayer {
    /// A layer for agents of `pool`, found by `source`.
    #[track_caller]
    pub fn new(pool: Pool, source: AgentSource<Parts>) -> Self {
        LeaseLayer(Agents::new(pool, source))
    }
}

impl<S> Layer<S> for LeaseLayer {
    type Service = LeaseService<S>;

    fn layer(&self, inner: S) -> LeaseService<S> {
        LeaseService {
            inner,
            agents: self.0.clone(),
        }
    }
}

impl<S, B> Service<Request<B>> for LeaseService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
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
