//! The kernel's count of a pool's descriptors, to check the pool's own books with: one look for all who ask.
//! It looks on a thread that may block, because it reads every descriptor of the process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Mutex;

use super::watch::Watched;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(2);

/// The last look. The caller that looks holds the lock, and others wait for what it finds.
#[derive(Default)]
pub(super) struct Kernel(Arc<Mutex<Option<Looked>>>);

#[derive(Clone, Copy)]
struct Looked {
    at: Instant,
    found: Option<usize>,
}

/// Both counts. The pool may have opened or closed a connection between them.
#[derive(Serialize)]
pub(super) struct Compared {
    /// By the pool's books; `null`: it keeps none.
    counted: Option<usize>,
    /// By the kernel; `null`: it does not say.
    kernel: Option<usize>,
    ceiling: usize,
}

impl Kernel {
    /// The counts, at most `FRESH` old. Dropping the future leaves a look that has begun to the next caller.
    pub(super) async fn compare(&self, pool: &Arc<dyn Watched>) -> Compared {
        let mut last = Arc::clone(&self.0).lock_owned().await;
        let fresh = last.filter(|looked| looked.at.elapsed() < FRESH);
        let kernel = match fresh {
            Some(looked) => looked.found,
            None => {
                let pool = Arc::clone(pool);
                let look = move || {
                    let found = pool.descriptors();
                    let at = Instant::now();
                    *last = Some(Looked { at, found });
                    found
                };
                // An error means that the runtime ends.
                tokio::task::spawn_blocking(look).await.ok().flatten()
            }
        };
        Compared {
            counted: pool.counted_descriptors(),
            kernel,
            ceiling: pool.fd_ceiling(),
        }
    }
}
