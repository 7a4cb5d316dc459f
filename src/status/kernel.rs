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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::SystemTime;

    use super::super::snapshot::{Now, Privacy};
    use super::*;
    use crate::error::Error;
    use crate::observe::families::Family;
    use crate::observe::health::Health;

    /// A pool whose descriptors take long to count.
    struct Slow(AtomicUsize);

    impl Watched for Slow {
        fn name(&self) -> &str {
            unreachable!("only descriptors are asked for")
        }

        fn now(&self, _: &Privacy, _: SystemTime, _: Duration) -> Now {
            unreachable!("only descriptors are asked for")
        }

        fn health(&self) -> Health {
            unreachable!("only descriptors are asked for")
        }

        fn ready(&self) -> Result<(), Error> {
            unreachable!("only descriptors are asked for")
        }

        fn families(&self) -> Vec<Family> {
            unreachable!("only descriptors are asked for")
        }

        fn counted_descriptors(&self) -> Option<usize> {
            Some(7)
        }

        fn descriptors(&self) -> Option<usize> {
            std::thread::sleep(Duration::from_millis(50));
            Some(self.0.fetch_add(1, SeqCst) + 7)
        }

        fn fd_ceiling(&self) -> usize {
            9
        }
    }

    #[test]
    fn all_who_ask_together_have_one_answer() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let pool: Arc<dyn Watched> = Arc::new(Slow(AtomicUsize::new(0)));
            let kernel = Arc::new(Kernel::default());
            // One gives up, and its look goes on.
            let gives_up = kernel.compare(&pool);
            drop(tokio::time::timeout(Duration::from_millis(1), gives_up).await);
            let asks = (0..8).map(|_| {
                let (kernel, pool) = (Arc::clone(&kernel), Arc::clone(&pool));
                tokio::spawn(async move { kernel.compare(&pool).await })
            });
            for asked in asks.collect::<Vec<_>>() {
                let compared = asked.await.unwrap();
                assert_eq!((compared.kernel, compared.counted), (Some(7), Some(7)));
            }
        });
    }
}
