//! The feature `actix`: a lease, or the agent, as an extractor, and errors as responses.
//! It translates only.

use std::fmt;
use std::future::{Future, Ready, ready};
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{ContentType, HeaderValue, RETRY_AFTER};
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError};

use super::{
    Agent, AgentSource, Agents, Answer, Existing, NODE_HEADER, RequestParts, request_name, sealed,
};
use crate::error::Error;
use crate::pool::Pool;
use crate::pool::lease::Lease;
use crate::pool::pooled::{Backend, Sqlite};

/// Application data that says which pool to lease from, and how to find the agent of a request.
///
/// ```
/// use actix_web::App;
/// use leasepool::web::{AgentSource, LeaseData};
/// use leasepool::{Database, Pool};
///
/// # fn main() -> Result<(), leasepool::Error> {
/// let pool = Pool::builder(Database::memory()).build()?;
/// let leases = LeaseData::new(pool, AgentSource::header("x-agent"));
/// let app = App::new().app_data(leases);
/// # Ok(())
/// # }
/// ```
pub struct LeaseData<B: Backend = Sqlite>(Agents<HttpRequest, B>);

impl<B: Backend> fmt::Debug for LeaseData<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseData").field(&self.0).finish()
    }
}

impl<B: Backend> Clone for LeaseData<B> {
    fn clone(&self) -> Self {
        LeaseData(self.0.clone())
    }
}

impl<B: Backend> LeaseData<B> {
    /// Leases for agents of `pool`, found by `source`.
    #[track_caller]
    pub fn new(pool: Pool<B>, source: AgentSource<HttpRequest>) -> Self {
        LeaseData(Agents::new(pool, source))
    }
}

/// The agent of the request, found by the [`LeaseData`] of the application.
impl<B: Backend> FromRequest for Agent<B> {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let data = request.app_data::<LeaseData<B>>();
        ready(match data {
            Some(data) => {
                let route = request.match_pattern();
                let name = route.and_then(|route| request_name(request.method(), &route));
                Ok(data.0.of(request).serving(name))
            }
            None => Err(Error::NotInstalled { what: "LeaseData" }),
        })
    }
}

/// A lease of the request's agent, awaited for at most the pool's `lease_timeout`.
impl<B: Backend> FromRequest for Lease<B> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let agent = Agent::<B>::from_request(request, payload);
        Box::pin(async move {
            let agent = agent.await?;
            agent.lease_extracted().await
        })
    }
}

impl FromRequest for Existing<Agent> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let agent = Agent::from_request(request, payload);
        Box::pin(async move {
            let agent = agent.await?;
            agent.check_existing().await?;
            Ok(Existing(agent))
        })
    }
}

impl FromRequest for Existing<Lease> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let agent = Existing::<Agent>::from_request(request, payload);
        Box::pin(async move {
            let Existing(agent) = agent.await?;
            Ok(Existing(agent.lease_extracted().await?))
        })
    }
}

/// See [`web`](crate::web) for which error becomes which response.
impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        status(&Answer::of(self))
    }

    fn error_response(&self) -> HttpResponse {
        let answer = Answer::to(self);
        let mut response = HttpResponse::build(status(&answer));
        response.insert_header(ContentType::plaintext());
        if let Some(seconds) = answer.retry_after {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        if let Some(node) = answer
            .node
            .and_then(|node| HeaderValue::from_str(node).ok())
        {
            response.insert_header((NODE_HEADER, node));
        }
        response.body(answer.body)
    }
}

fn status(answer: &Answer<'_>) -> StatusCode {
    StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl sealed::Sealed for HttpRequest {}

impl RequestParts for HttpRequest {
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers().get_all(name).map(|value| value.as_bytes())
    }

    fn path(&self) -> &str {
        HttpRequest::path(self)
    }

    fn with_extension<T: Send + Sync + 'static, U>(&self, f: impl FnOnce(&T) -> U) -> Option<U> {
        self.extensions().get::<T>().map(f)
    }
}
