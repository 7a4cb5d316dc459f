//! The bench `versus` with async-sqlite: `cargo run --release`, or `benches/versus/run` for all.

#[path = "../../acts.rs"]
mod acts;

use acts::{act, configure, create};
use async_sqlite::{Pool, PoolBuilder, rusqlite};
use versus_workload::{Act, CONNECTIONS, Contender, Stage, What, run};

fn contender(stage: &Stage) -> Contender {
    let name = "async-sqlite";
    let (path, sync) = (create(stage, name), stage.sync);
    let pool: Pool = stage.runtime.block_on(async {
        let builder = PoolBuilder::new().path(path).num_conns(CONNECTIONS);
        let pool = builder.open().await.unwrap();
        for configured in pool
            .conn_for_each(move |connection| configure(connection, sync))
            .await
        {
            configured.unwrap();
        }
        pool
    });
    Contender::tasks(name, move |what: Act| {
        let pool = pool.clone();
        async move {
            let done = pool.conn_mut(move |connection| act(connection, what));
            done.await.unwrap();
        }
    })
    // It has nothing to be checked out.
    .cannot(&[What::Checkout])
}

fn main() {
    run(|stage| vec![contender(stage)]);
}
