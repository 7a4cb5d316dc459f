//! What a client is told when something goes wrong: a status, and a fixed text.

use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};

pub(crate) enum Fault {
    /// The request cannot be served as it is.
    Bad(&'static str),
    NoSuchSession,
    /// Too many streams are running.
    Busy,
    /// leasepool knows what its errors mean in HTTP.
    Pool(leasepool::Error),
}

impl<E: Into<leasepool::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::Pool(error.into())
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self {
            Fault::Bad(reason) => (StatusCode::BAD_REQUEST, reason).into_response(),
            Fault::NoSuchSession => (StatusCode::NOT_FOUND, "no such session").into_response(),
            Fault::Busy => {
                let again = [(RETRY_AFTER, "1")];
                (StatusCode::SERVICE_UNAVAILABLE, again, "too many streams").into_response()
            }
            Fault::Pool(error) => {
                if let leasepool::Error::Sqlite(error) = &error {
                    eprintln!("chat_server: {error}");
                }
                error.into_response()
            }
        }
    }
}
