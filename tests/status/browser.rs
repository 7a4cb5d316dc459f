//! The page in Chromium, driven through chromedriver. Without them it is not tested, unless
//! `LEASEPOOL_BROWSER` is set: then they must be there.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use leasepool::{Database, Pool};

use crate::server::{LONG, Server};

struct Driver {
    process: Child,
    port: String,
}

impl Driver {
    fn start() -> Option<Driver> {
        let started = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut process = match started {
            Ok(process) => process,
            Err(error) if std::env::var_os("LEASEPOOL_BROWSER").is_some() => {
                panic!("chromedriver: {error}")
            }
            Err(_) => {
                eprintln!("no chromedriver: the page was not tested");
                return None;
            }
        };
        let output = BufReader::new(process.stdout.take().unwrap());
        let port = output.lines().map_while(Result::ok).find_map(|line| {
            let port = line.split_once("started successfully on port ")?.1;
            Some(port.trim_end_matches('.').to_owned())
        });
        Some(Driver {
            process,
            port: port.unwrap(),
        })
    }

    async fn browser(&self, width: u32) -> Client {
        let options = serde_json::json!({
            "goog:chromeOptions": { "args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                format!("--window-size={width},900"),
            ]},
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let serde_json::Value::Object(options) = options else {
            unreachable!()
        };
        ClientBuilder::new(HttpConnector::new())
            .capabilities(options)
            .connect(&format!("http://127.0.0.1:{}", self.port))
            .await
            .unwrap()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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
    let browser = driver.browser(360).await;
    browser
        .goto(&format!("http://{}/status", server.address))
        .await
        .unwrap();
    until_text(&browser, "state", |state| state == "ready").await;
    assert_eq!(text(&browser, "name").await, "chat.db");
    assert_eq!(text(&browser, "ceiling").await, "9");

    // A lease, with a name that is no markup.
    let evil = "<img src=x onerror=alert(1)>";
    let lease = pool.lease(evil).unwrap();
    let place = format!("browser.rs:{}", line!() - 1);
    until_text(&browser, "holders", |rows| rows.contains(evil)).await;
    assert!(text(&browser, "holders").await.contains(&place));
    until_text(&browser, "legend", |states| states.contains("lent 1")).await;
    let second = pool.lease("second").unwrap();
    until_text(&browser, "state", |state| {
        state.contains("every connection")
    })
    .await;
    drop((lease, second));
    until_text(&browser, "holders", |rows| rows == "none").await;
    until_text(&browser, "legend", |states| states.contains("parked 2")).await;
    until_text(&browser, "state", |state| state == "ready").await;

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
    assert_eq!(text(&browser, "group-size").await, "–");
    go_on.send(()).unwrap();
    until_text(&browser, "writes", |n| n == "4").await;
    let some = |rate: &str| rate.parse().is_ok_and(|rate: f64| rate > 0.0);
    until_text(&browser, "write-rate", some).await;
    assert_eq!(text(&browser, "group-size").await, "4.0");
    assert_eq!(text(&browser, "writes-waiting").await, "0");
    let pages = pool.stats().wal_pages.to_string();
    assert_eq!(text(&browser, "wal-pages").await, pages);
    assert!(text(&browser, "write-durations").await.starts_with("took "));
    until_text(&browser, "write-rate", |rate| rate == "0.0").await;
    first.await.unwrap().unwrap();
    for write in next {
        write.await.unwrap().unwrap();
    }

    // Nothing sticks out on a phone, in light or in dark.
    let overflow = "return document.documentElement.scrollWidth - innerWidth";
    let overflow = browser.execute(overflow, vec![]).await.unwrap();
    assert!(overflow.as_i64().unwrap() <= 0, "{overflow}");

    // The server restarts: another pool's numbers, on the same page.
    server.stop();
    until_text(&browser, "state", |state| state.contains("trying again")).await;
    let other = Pool::builder(Database::memory())
        .name("other")
        .build()
        .unwrap();
    let server = Server::start(&other, port);
    until_text(&browser, "name", |name| name == "other").await;
    until_text(&browser, "state", |state| state == "ready").await;

    // The pool closes under the page.
    other.close().unwrap();
    until_text(&browser, "state", |state| state == "closed").await;

    if let Some(folder) = std::env::var_os("LEASEPOOL_SCREENSHOTS") {
        let image = browser.screenshot().await.unwrap();
        std::fs::write(std::path::Path::new(&folder).join("status.png"), image).unwrap();
    }
    browser.close().await.unwrap();
    server.stop();
}
