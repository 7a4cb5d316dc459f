//! The main example, from the outside: what it serves, and what it says to bad input.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::common::*;

/// The example's program, built by the same cargo that built this test.
fn agents(args: &[&str]) -> Output {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--example", "agents"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
        // target/debug/deps/it-… → target/debug/examples/agents
        let this = std::env::current_exe().unwrap();
        this.parent()
            .unwrap()
            .parent()
            .unwrap()
            .join("examples/agents")
    });
    Command::new(program).args(args).output().unwrap()
}

fn last_line(output: &Output) -> serde_json::Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

fn refused(args: &[&str], expected: &str) {
    let output = agents(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.contains(expected), "{args:?}: {stderr}");
}

#[test]
fn the_three_acts() {
    let fixture = Fixture::new();
    let chart = fixture.in_folder("chart.svg");
    let output = agents(&[
        "--agents",
        "200",
        "--turns",
        "400",
        "--json",
        "--chart",
        chart.to_str().unwrap(),
    ]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout.contains("died at agent"), "{stdout}");
    assert!(stdout.contains("starved after 8 agents"), "{stdout}");
    assert!(stdout.contains("served all 400 turns"), "{stdout}");
    let leased = last_line(&output);
    for key in [
        "act",
        "agents",
        "turns",
        "errors",
        "elapsed_s",
        "turns_per_s",
        "fd_limit",
        "fd_ceiling",
        "fd_max_db",
        "fd_max_wal",
        "fd_max_shm",
        "rows_expected",
        "rows_found",
        "integrity",
        "hits",
        "misses",
        "reclaims",
        "evictions",
    ] {
        assert!(!leased[key].is_null(), "{key}: {leased}");
    }
    assert_eq!(leased["act"], "leased");
    assert_eq!(
        (&leased["turns"], &leased["errors"]),
        (&400.into(), &0.into())
    );
    assert_eq!(
        (&leased["rows_found"], &leased["integrity"]),
        (&800.into(), &"ok".into())
    );
    let svg = std::fs::read_to_string(chart).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 3);
}

#[test]
fn the_leased_act_under_exactly_the_ceiling_and_four() {
    // Standard input, output and error, and what the pool may need; four to spare.
    let ceiling = 2 * 8 + 1 + 4;
    let limit = (3 + ceiling + 4).to_string();
    let output = agents(&[
        "--act",
        "leased",
        "--turns",
        "1000",
        "--fd-limit",
        &limit,
        "--json",
    ]);
    assert!(output.status.success(), "{output:?}");
    let leased = last_line(&output);
    assert_eq!(
        (&leased["turns"], &leased["errors"]),
        (&1000.into(), &0.into())
    );
    assert_eq!(leased["fd_ceiling"], ceiling);
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let fixture = Fixture::new();
    let path = |name: &str| fixture.in_folder(name).to_str().unwrap().to_owned();
    refused(&["--no-such-flag"], "--no-such-flag");
    refused(&["--agents", "0"], "--agents");
    refused(&["--turns", "many"], "--turns");
    refused(&["--fd-limit", "-1"], "-1");
    refused(&["--act", "tragedy"], "tragedy");
    refused(&["--act", "pinned", "--per-agent"], "no act 'pinned'");
    refused(&["--transcript", &path("missing.txt")], "missing.txt");
    refused(
        &["--transcript", fixture.folder.path().to_str().unwrap()],
        "Is a directory",
    );
    refused(&["--db", &path("no/such/agents.db")], "no such folder");
    refused(
        &["--connections", "100", "--act", "leased"],
        "205 descriptors",
    );
    std::fs::write(path("taken.db"), "precious").unwrap();
    refused(&["--act", "leased", "--db", &path("taken.db")], "exists");
    assert_eq!(std::fs::read(path("taken.db")).unwrap(), b"precious");
    std::fs::write(path("empty.txt"), "\n\n").unwrap();
    refused(&["--transcript", &path("empty.txt")], "no message");
}

#[test]
fn a_transcript_is_used_and_its_bad_lines_are_told() {
    let fixture = Fixture::new();
    let file = fixture.in_folder("talk.jsonl");
    let db = fixture.in_folder("kept.db");
    let lines = "{\"role\":\"user\",\"content\":\"where is the yellow elephant\"}\n\
                 {\"role\":\"assistant\",\"content\":\"in the \\\"garden\\\"\"}\n\
                 not json\n\
                 {\"role\":\"system\",\"content\":\"x\"}\n\
                 {\"role\":\"user\"}\n";
    std::fs::write(&file, lines).unwrap();
    let output = agents(&[
        "--act",
        "leased",
        "--turns",
        "100",
        "--keep",
        "--transcript",
        file.to_str().unwrap(),
        "--db",
        db.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    for line in [
        "talk.jsonl:3: not a line of JSON",
        "talk.jsonl:4: \"role\"",
        "talk.jsonl:5: no text",
    ] {
        assert!(stderr.contains(line), "{stderr}");
    }
    let conn = leasepool::rusqlite::Connection::open(&db).unwrap();
    let bodies: Vec<String> = conn
        .prepare("SELECT DISTINCT body FROM messages ORDER BY body")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        bodies,
        ["in the \"garden\"", "where is the yellow elephant"]
    );
}

#[test]
fn a_file_for_each_agent() {
    let output = agents(&["--per-agent", "--short", "--json"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout.contains("owned   died at agent"), "{stdout}");
    assert!(!stdout.contains("pinned"), "{stdout}");
    let leased = last_line(&output);
    assert_eq!(
        (&leased["turns"], &leased["errors"]),
        (&1000.into(), &0.into())
    );
    assert_eq!(
        (&leased["rows_found"], &leased["integrity"]),
        (&2000.into(), &"ok".into())
    );
    let number = |key: &str| leased[key].as_u64().unwrap();
    assert!(number("files") > 100, "{leased}");
    assert_eq!(number("files"), number("files_checked"));
    // Database, -wal and -shm of eight connections, and what passes.
    assert!(number("fd_ceiling") >= 3 * 8, "{leased}");
    assert!(number("fd_ceiling") + 4 < number("fd_limit"), "{leased}");
    assert!(number("fd_max_all") > 3, "{leased}");
    assert!(number("fd_max_all") <= number("fd_ceiling"), "{leased}");
}
