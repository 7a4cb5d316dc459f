//! The spans that the pool opens: how long a call or a lease took, for subscribers of the feature `tracing`.
//! It costs one load where no subscriber wants them, and nothing where the feature is off.
//!
//! A subscriber is foreign code: if it panics, the pool must lose nothing.
#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, reason = "then there are no spans")
)]

use std::future::poll_fn;
use std::pin::pin;
#[cfg(feature = "tracing")]
use std::sync::Arc;

use super::call_site::CallSite;
#[cfg(feature = "tracing")]
use crate::sync::unwind::{drop_quietly, quietly};

/// A span that may be none. A pointer, because every lease has one; and shared, because a subscriber is told of clones.
#[derive(Clone, Default)]
pub(crate) struct Span(#[cfg(feature = "tracing")] Option<Arc<tracing::Span>>);

/// Opens a span, if a subscriber may want it.
macro_rules! span {
    ($($span:tt)*) => {{
        #[cfg(feature = "tracing")]
        if tracing::level_enabled!(tracing::Level::DEBUG) {
            return Span::opened(|| tracing::debug_span!($($span)*));
        }
        Span::default()
    }};
}

impl Span {
    /// A caller waits for a permit, or for its agent's lock.
    pub(crate) fn wait(pool: &str, agent: &str) -> Self {
        span!("lease wait", pool, agent)
    }

    /// A borrower has a lease.
    #[inline]
    pub(crate) fn hold(pool: &str, agent: &str) -> Self {
        span!("lease hold", pool, agent)
    }

    /// A call of `run`, from the call to its answer.
    pub(crate) fn run(pool: &str, agent: &str, place: CallSite) -> Self {
        span!("run", pool, agent, called_at = %place.line, request = place.request())
    }

    /// A call of `read_async`, likewise.
    pub(crate) fn read(pool: &str, agent: &str, place: CallSite) -> Self {
        span!("read", pool, agent, called_at = %place.line, request = place.request())
    }

    /// A call of `write`, likewise.
    pub(crate) fn write(pool: &str, agent: &str, place: CallSite) -> Self {
        span!("write", pool, agent, called_at = %place.line, request = place.request())
    }

    #[cfg(feature = "tracing")]
    #[cold]
    fn opened(open: impl FnOnce() -> tracing::Span) -> Self {
        Span(
            quietly(open)
                .filter(|span| !span.is_disabled())
                .map(Arc::new),
        )
    }

    /// Does `work` within the span.
    #[inline]
    pub(crate) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.0.as_ref().map(|span| Entered::new(span));
        work()
    }

    /// Awaits `future`, whose polls are within the span.
    pub(crate) async fn around<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|cx| self.in_scope(|| future.as_mut().poll(cx))).await
    }
}

#[cfg(feature = "tracing")]
impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some(span) = self.0.take() {
            drop_quietly(span);
        }
    }
}

#[cfg(feature = "tracing")]
struct Entered<'a>(Option<tracing::span::Entered<'a>>);

#[cfg(feature = "tracing")]
impl<'a> Entered<'a> {
    #[cold]
    fn new(span: &'a tracing::Span) -> Self {
        Entered(quietly(|| span.enter()))
    }
}

#[cfg(feature = "tracing")]
impl Drop for Entered<'_> {
    fn drop(&mut self) {
        drop_quietly(self.0.take());
    }
}
