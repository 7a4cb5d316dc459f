//! The page in Chromium, driven through chromedriver. Without them it is not tested, unless
//! `LEASEPOOL_BROWSER` is set: then they must be there.

use std::time::{Duration, Instant};

use fantoccini::{Client, Locator};
use leasepool::status::{self, Agents, Places};
use leasepool::{Database, Pool};

use crate::driver::Driver;
use crate::server::{LONG, Server};

async fn text(browser: &Client, id: &str) -> String {
    let found = browser.find(Locator::Id(id)).await.unwrap();
    found.text().await.unwrap()
}

async fn until_text(browser: &Client, id: &str, wanted: impl Fn(&str) -> bool) {
    let start = Instant::now();
    loop {
        let found = text(browser, id).await;
        if wanted(&found) {
            return;
        }
        assert!(start.elapsed() < LONG, "{id} stays {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_lease_while_it_is_held_and_its_end() {
    let Some(driver) = Driver::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::builder(Database::file(folder.path().join("chat.db")))
        .max_connections(2)
        .lease_timeout(LONG)
        .write_group(256, LONG)
        .build()
        .unwrap();
    let server = Server::start(&pool, 0);
    let port = server.address.port();
    let browser = driver.browser(375).await;
    browser
        .goto(&format!("http://{}/status", server.address))
        .await
        .unwrap();
    until_text(&browser, "state", |state| state == "✓ healthy").await;
    until_text(&browser, "ready", |ready| ready == "ready").await;
    assert_eq!(text(&browser, "name").await, "chat.db");
    assert_eq!(text(&browser, "descriptors-sub").await, "at most 9");

    // A lease, with a name that is no markup.
    let evil = "<img src=x onerror=alert(1)>";
    let lease = pool.lease(evil).unwrap();
    let place = format!("browser.rs:{}", line!() - 1);
    until_text(&browser, "holders", |rows| rows.contains(evil)).await;
    assert!(text(&browser, "holders").await.contains(&place));
    until_text(&browser, "legend", |states| states.contains("lent 1")).await;
    let second = pool.lease("second").unwrap();
    until_text(&browser, "ready", |ready| {
        ready.contains("every connection")
    })
    .await;
    assert_eq!(text(&browser, "utilisation").await, "100.0 %");
    drop((lease, second));
    until_text(&browser, "holders", |rows| rows == "none").await;
    until_text(&browser, "legend", |states| states.contains("parked 2")).await;
    until_text(&browser, "state", |state| state == "✓ healthy").await;
    until_text(&browser, "ready", |ready| ready == "ready").await;

    // The kernel counts what the pool counts.
    browser
        .find(Locator::Id("kernel"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    let counts = pool.descriptors().unwrap();
    let wanted = format!("{counts} by the kernel, {counts} by the pool, at most 9");
    until_text(&browser, "kernel-says", |says| says == wanted).await;

    // A write, three that wait for it, and all of them as one transaction.
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let writer = pool.clone();
    let first = tokio::spawn(async move {
        let write = writer.write_async("first", move |tx| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            tx.execute_batch("CREATE TABLE t (x)")?;
            Ok(())
        });
        write.await
    });
    has_begun.recv().unwrap();
    let next = [1, 2, 3].map(|x| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let write = pool.write_async("next", move |tx| {
                tx.execute("INSERT INTO t VALUES (?1)", [x])?;
                Ok(())
            });
            write.await
        })
    });
    until_text(&browser, "writes-waiting", |n| n == "3").await;
    go_on.send(()).unwrap();
    let some = |rate: &str| rate.parse().is_ok_and(|rate: f64| rate > 0.0);
    until_text(&browser, "write-rate", some).await;
    // The first write has created the table, and the others were one transaction with it.
    assert_eq!(text(&browser, "write-rate-sub").await, "4.0 a transaction");
    assert_eq!(text(&browser, "writes-waiting").await, "0");
    let kib = format!("{:.1}", pool.stats().wal_bytes as f64 / 1024.0);
    let length = format!("{} KiB", kib.trim_end_matches(".0"));
    assert_eq!(text(&browser, "wal").await, length);
    let durations = text(&browser, "durations").await;
    assert!(durations.contains("write took, last 10 s"), "{durations}");
    until_text(&browser, "write-rate", |rate| rate == "0.0").await;
    first.await.unwrap().unwrap();
    for write in next {
        write.await.unwrap().unwrap();
    }

    fits(&browser, 375).await;

    // The server restarts: another pool's numbers, on the same page.
    server.stop();
    until_text(&browser, "state", |state| state.contains("trying again")).await;
    let other = Pool::builder(Database::memory())
        .name("other")
        .build()
        .unwrap();
    let server = Server::start(&other, port);
    until_text(&browser, "name", |name| name == "other").await;
    until_text(&browser, "state", |state| state == "✓ healthy").await;
    until_text(&browser, "ready", |ready| ready == "ready").await;

    // The pool closes under the page.
    other.close().unwrap();
    until_text(&browser, "state", |state| state == "✕ down").await;
    assert!(
        text(&browser, "reasons")
            .await
            .starts_with("the pool is closed")
    );

    browser.close().await.unwrap();
    server.stop();
}

/// Nothing sticks out.
async fn fits(browser: &Client, width: u32) {
    let script = "return [innerWidth, document.documentElement.scrollWidth]";
    let found = browser.execute(script, vec![]).await.unwrap();
    assert_eq!(found, serde_json::json!([width, width]));
}

async fn run(browser: &Client, script: &str) -> serde_json::Value {
    browser.execute(script, vec![]).await.unwrap()
}

/// Where the environment asks for it, pictures of the page for the documentation.
async fn picture(browser: &Client, name: &str) {
    if let Some(folder) = std::env::var_os("LEASEPOOL_SCREENSHOTS") {
        // A path that is not absolute begins at the folder of the repository.
        let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let path = repository.join(folder).join(name);
        std::fs::write(path, browser.screenshot().await.unwrap()).unwrap();
    }
}

/// An agent whose id is long, and one whose id would turn the text around it. D10.
const LONG_ID: &str = "tenant-0123456789-";
const TURNING: &str = "\u{202e}evil\u{0}";

#[tokio::test(flavor = "multi_thread")]
async fn in_trouble_the_page_says_what_it_is_and_who_is_in_the_way() {
    let Some(driver) = Driver::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orders.db");
    let pool = Pool::builder(Database::file(&path))
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .max_connections(8)
        .lease_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let page = status::Page::new(&pool)
        .agents(Agents::Show)
        .places(Places::Show);
    let server = Server::of(page, status::Page::public, 0);
    let address = format!("http://{}/status/", server.address);
    let wide = driver.browser(1280).await;
    wide.goto(&address).await.unwrap();
    until_text(&wide, "state", |state| state == "✓ healthy").await;
    // Some seconds of ordinary life, for the curves.
    let calm = Instant::now();
    let moments = std::env::var_os("LEASEPOOL_SCREENSHOTS").map_or(1, |_| 20);
    while calm.elapsed() < Duration::from_secs(moments) {
        for agent in 0..40 {
            let insert = "INSERT INTO t VALUES (randomblob(100))";
            pool.write(agent, move |tx| -> leasepool::rusqlite::Result<usize> {
                tx.execute(insert, [])
            })
            .unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fits(&wide, 1280).await;
    picture(&wide, "calm.png").await;

    let long = LONG_ID.repeat(17);
    let mut held: Vec<_> = (0..4)
        .map(|n| pool.lease(format!("worker-{n}")).unwrap())
        .collect();
    held.push(pool.lease(&long).unwrap());
    held.push(pool.lease(TURNING).unwrap());
    let other = leasepool::rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let (pool, stop) = (pool.clone(), std::sync::Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = pool.execute("writer", "INSERT INTO t VALUES (1)", []);
                }
            })
        })
        .collect();
    until_text(&wide, "state", |state| state == "! degraded").await;
    until_text(&wide, "reasons", |why| why.contains("another process")).await;
    until_text(&wide, "ready", |ready| ready == "writes are locked out").await;
    let failures = |rate: &str| rate.parse().is_ok_and(|rate: f64| rate > 0.0);
    until_text(&wide, "errors", failures).await;
    let kind = run(
        &wide,
        "return document.getElementById('tile-errors').className",
    )
    .await;
    assert!(kind == "warn" || kind == "bad", "{kind}");

    // Ids of agents cannot turn the page around, nor push it apart.
    until_text(&wide, "holders", |rows| {
        rows.contains("\\u{202E}evil\\u{0000}")
    })
    .await;
    assert!(!text(&wide, "holders").await.contains('\u{202e}'));
    fits(&wide, 1280).await;
    picture(&wide, "trouble.png").await;
    run(&wide, "document.querySelector('figure').scrollIntoView()").await;
    picture(&wide, "charts.png").await;

    // A row keeps its element, and so the selection in it.
    let mark = "const row = [...document.querySelectorAll('#holders tr')].find(r => r.textContent.includes('worker-1'));
        window.marked = row; getSelection().selectAllChildren(row.querySelector('bdi')); window.age = row.textContent";
    run(&wide, mark).await;
    let start = Instant::now();
    while run(&wide, "return window.marked.textContent === window.age").await == true {
        assert!(start.elapsed() < LONG, "the age stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        run(&wide, "return getSelection().toString().trim()").await,
        "worker-1"
    );
    // Filter, and groups by source line.
    let filter = wide.find(Locator::Id("filter")).await.unwrap();
    filter.send_keys("worker-").await.unwrap();
    let rows = "return document.querySelectorAll('#holders tr').length";
    assert_eq!(run(&wide, rows).await, 4);
    let group = wide.find(Locator::Id("group")).await.unwrap();
    group.select_by_value("place").await.unwrap();
    assert_eq!(run(&wide, rows).await, 1);
    until_text(&wide, "holders", |rows| rows.contains("several")).await;
    group.select_by_value("agent").await.unwrap();
    assert_eq!(run(&wide, rows).await, 4);
    let options = "return document.getElementById('sqlite-options').textContent";
    let options = run(&wide, options).await;
    assert!(
        options.as_str().unwrap().contains("THREADSAFE="),
        "{options}"
    );
    // Values under the pointer, here by the keyboard.
    run(&wide, "document.querySelector('figure svg').focus()").await;
    let keys =
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }));
        return document.activeElement.nextSibling.textContent";
    let told = run(&wide, keys).await;
    assert!(told.as_str().unwrap().contains("s ago"), "{told}");
    // Paused, nothing changes.
    wide.find(Locator::Id("pause"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    let frozen = run(&wide, "return document.querySelector('main').innerText").await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(
        run(&wide, "return document.querySelector('main').innerText").await,
        frozen
    );
    let captions = "return [...document.querySelectorAll('table')].every(t => t.caption && [...t.querySelectorAll('thead th')].every(h => h.scope === 'col'))";
    assert_eq!(run(&wide, captions).await, true);
    wide.close().await.unwrap();

    // On a phone, in the dark: rows are stacked.
    let phone = driver.browser_in(375, true).await;
    phone.goto(&address).await.unwrap();
    until_text(&phone, "reasons", |why| why.contains("another process")).await;
    until_text(&phone, "holders", |rows| rows.contains("worker-1")).await;
    fits(&phone, 375).await;
    let stacked = "return getComputedStyle(document.querySelector('#holders tr')).display";
    assert_eq!(run(&phone, stacked).await, "block");
    picture(&phone, "phone-dark.png").await;
    phone.close().await.unwrap();

    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    server.stop();
}

/// D4: the page of an operator who finds no place among the watchers.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_stream_the_page_asks_for_the_numbers() {
    let Some(driver) = Driver::start() else {
        return;
    };
    let pool = Pool::builder(Database::memory()).name("m").build().unwrap();
    let page = status::Page::new(&pool).watchers(0).agents(Agents::Show);
    let server = Server::of(page, status::Page::public, 0);
    let browser = driver.browser(1280).await;
    browser
        .goto(&format!("http://{}/status", server.address))
        .await
        .unwrap();
    until_text(&browser, "live", |live| live == "live, every 2 s").await;
    let held = pool.lease("alice").unwrap();
    until_text(&browser, "holders", |rows| rows.contains("alice")).await;
    drop(held);
    until_text(&browser, "holders", |rows| rows == "none").await;
    assert_eq!(text(&browser, "state").await, "✓ healthy");
    browser.close().await.unwrap();
    server.stop();
}
