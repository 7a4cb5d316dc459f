//! The feature `axum`: a lease, or the agent, as an extractor, and errors as responses.
//! It translates only.

use axum::extract::{FromRequestParts, MatchedPath};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, StatusCode};

use super::{Agent, Answer, Existing, NODE_HEADER, request_name};
use crate::error::Error;
use crate::pool::lease::Lease;
use crate::pool::pooled::Backend;

/// The agent that [`LeaseLayer`](super::LeaseLayer) found. The layer must be around the handler.
impl<S: Send + Sync, B: Backend> FromRequestParts<S> for Agent<B> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let agent = parts.extensions.get::<Agent<B>>();
        let agent = agent.ok_or(Error::NotInstalled { what: "LeaseLayer" })?;
        let route = parts.extensions.get::<MatchedPath>();
        let request = route.and_then(|route| request_name(&parts.method, route.as_str()));
        Ok(agent.clone().serving(request))
    }
}

/// A lease of the request's agent, awaited for at most the pool's `lease_timeout`.
impl<S: Send + Sync, B: Backend> FromRequestParts<S> for Lease<B> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let agent = Agent::<B>::from_request_parts(parts, state).await?;
        agent.lease_extracted().await
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Existing<Agent> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let agent = Agent::from_request_parts(parts, state).await?;
        agent.check_existing().await?;
        Ok(Existing(agent))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Existing<Lease> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Existing(agent) = Existing::<Agent>::from_request_parts(parts, state).await?;
        Ok(Existing(agent.lease_extracted().await?))
    }
}

/// See [`web`](crate::web) for which error becomes which response.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let answer = Answer::to(&self);
        let status = StatusCode::from_u16(answer.status);
        let mut response = (
            status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            answer.body,
        )
            .into_response();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        if let Some(seconds) = answer.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(node) = answer
            .node
            .and_then(|node| HeaderValue::from_str(node).ok())
        {
            headers.insert(NODE_HEADER, node);
        }
        response
    }
}
