//! Chromium, driven through chromedriver.
//! It knows no page.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;

/// A chromedriver of its own.
pub(crate) struct Driver {
    process: Child,
    port: String,
}

impl Driver {
    /// `None` where there is none, unless `LEASEPOOL_BROWSER` is set: then it must be there.
    pub(crate) fn start() -> Option<Driver> {
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

    pub(crate) async fn browser(&self, width: u32) -> Client {
        self.browser_in(width, false).await
    }

    /// With a page of this width: Chromium's own windows are never narrower than 500 pixels.
    pub(crate) async fn browser_in(&self, width: u32, dark: bool) -> Client {
        let options = serde_json::json!({
            "goog:chromeOptions": {
                "args": [
                    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                    format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }),
                ],
                "mobileEmulation": { "deviceMetrics": {
                    "width": width, "height": 900, "pixelRatio": 1.0, "mobile": width < 600, "touch": false,
                }},
            },
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
