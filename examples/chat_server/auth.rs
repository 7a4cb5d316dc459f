//! Who may see the status page: a client that sends the token, or one that asks from this machine.
//! It knows no users.

use std::net::IpAddr;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use subtle::ConstantTimeEq;

/// Lets through requests that bring the token: a program's as `Authorization: Bearer TOKEN`, a browser's as the password
/// that it asks for. The others are answered with 401.
pub(crate) fn behind_token(router: Router, token: String) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| {
        let may_see = has_token(request.headers(), &token);
        async move {
            if may_see {
                return next.run(request).await;
            }
            let challenge = [(
                WWW_AUTHENTICATE,
                "Basic realm=\"status\", charset=\"UTF-8\"",
            )];
            (StatusCode::UNAUTHORIZED, challenge, "not for you\n").into_response()
        }
    }))
}

/// Whether the request names this machine's loopback. A page of another site can send requests there, too, but under that
/// site's name.
pub(crate) fn is_for_loopback(head: &Parts) -> bool {
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    name == "localhost"
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let Some(brought) = headers.get(AUTHORIZATION) else {
        return false;
    };
    let Some((scheme, brought)) = brought.to_str().ok().and_then(|text| text.split_once(' '))
    else {
        return false;
    };
    // Comparing takes as long wherever the two begin to differ.
    let is_token = |brought: &[u8]| bool::from(brought.ct_eq(token.as_bytes()));
    if scheme.eq_ignore_ascii_case("bearer") {
        return is_token(brought.trim().as_bytes());
    }
    let password = scheme
        .eq_ignore_ascii_case("basic")
        .then(|| BASE64_STANDARD.decode(brought.trim()).ok())
        .flatten();
    password.is_some_and(|pair| {
        let colon = pair.iter().position(|byte| *byte == b':');
        let password = colon.and_then(|colon| pair.get(colon + 1..));
        password.is_some_and(is_token)
    })
}
