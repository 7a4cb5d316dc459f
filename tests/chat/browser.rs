//! The chat's page in a browser, on a phone and on a desk.

use std::time::{Duration, Instant};

use fantoccini::{Client, Locator};

use crate::driver::Driver;
use crate::server::{LONG, Server};

async fn until(browser: &Client, script: &str) {
    let start = Instant::now();
    while browser
        .execute(&format!("return {script}"), Vec::new())
        .await
        .unwrap()
        != true
    {
        assert!(start.elapsed() < LONG, "never: {script}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn write(browser: &Client, text: &str) {
    let area = browser.find(Locator::Id("text")).await.unwrap();
    area.send_keys(text).await.unwrap();
}

async fn click(browser: &Client, css: &str) {
    browser
        .find(Locator::Css(css))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
}

async fn fits(browser: &Client) {
    until(
        browser,
        "document.documentElement.scrollWidth <= window.innerWidth",
    )
    .await;
}

#[test]
fn what_is_refused_stays_in_the_box() {
    let Some(driver) = Driver::start() else {
        return;
    };
    let mut server = Server::start(&["--lease-timeout-ms", "50", "--stream-delay-ms", "1"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for width in [375, 1280] {
            let browser = driver.browser(width).await;
            browser
                .goto(&format!("http://{}/", server.address))
                .await
                .unwrap();
            write(&browser, "first").await;
            click(&browser, "#send").await;
            until(&browser, "document.querySelector('.user time') !== null").await;
            until(&browser, "document.getElementById('text').value === ''").await;
            let messages = "document.querySelector('#sessions [aria-current=true]')?.textContent";
            until(&browser, &format!("{messages}?.includes('(2)')")).await;
            // Another program has the lock.
            let other = leasepool::rusqlite::Connection::open(&server.database).unwrap();
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
            write(&browser, "kept").await;
            click(&browser, "#send").await;
            until(
                &browser,
                "document.getElementById('why').textContent.includes('busy')",
            )
            .await;
            until(&browser, "document.getElementById('text').value === 'kept'").await;
            until(&browser, "document.querySelectorAll('.user').length === 1").await;
            fits(&browser).await;
            other.execute_batch("ROLLBACK").unwrap();
            click(&browser, "#again").await;
            until(&browser, "document.querySelectorAll('.user').length === 2").await;
            until(&browser, "document.getElementById('fault').hidden").await;
            // Deleted only by who says so twice.
            until(&browser, &format!("{messages}?.includes('(4)')")).await;
            click(&browser, "#sessions [aria-current=true] + button").await;
            browser.dismiss_alert().await.unwrap();
            until(&browser, &format!("{messages}?.includes('(4)')")).await;
            click(&browser, "#sessions [aria-current=true] + button").await;
            assert!(
                browser
                    .get_alert_text()
                    .await
                    .unwrap()
                    .contains("4 messages")
            );
            browser.accept_alert().await.unwrap();
            until(&browser, "document.querySelectorAll('.user').length === 0").await;
            until(
                &browser,
                "document.querySelectorAll('#sessions li').length === 0",
            )
            .await;
            fits(&browser).await;
            browser.close().await.unwrap();
        }
    });
    server.terminate();
    server.ended();
}
