//! What the acts show, in the example's short form.

use std::process::Command;

use leasepool_postgres_server::installed;

#[test]
fn each_act_shows_what_it_is_for() {
    if !installed() {
        return;
    }
    let example = Command::new(env!("CARGO_BIN_EXE_postgres_agents"))
        .arg("--quick")
        .output()
        .unwrap();
    let said = String::from_utf8(example.stdout).unwrap();
    let complained = String::from_utf8_lossy(&example.stderr);
    println!("{said}{complained}");
    assert!(example.status.success());
    let line = |begin: &str| {
        let found = said.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("no line begins with {begin:?}"))
    };
    // 3 of the server's 100 are reserved, and this program's own client has one; so have those, for a moment, that the
    // server refuses.
    let owned = line("owned ");
    let sessions = 80..=96;
    assert!(
        sessions
            .map(|n| format!("failed with {n} sessions"))
            .any(|failed| owned.contains(&failed))
    );
    assert!(owned.contains("(53300)"));
    assert!(line("pinned ").contains("failed with 8 sessions"));
    assert!(line("pinned ").contains("timed out"));
    for act in ["leased", "awaited"] {
        assert!(line(&format!("{act} ")).contains("served all 2000 turns"));
        let verdict = line(&format!("ok     {act}: "));
        assert!(verdict.contains("2000 of 2000 turns, 2000 rows found, at most 8 connections"));
        assert!(verdict.ends_with(" 0 turns found another agent's setting"));
    }
}

#[test]
fn what_is_wrong_with_the_command_line_is_said_in_one_line() {
    let example = Command::new(env!("CARGO_BIN_EXE_postgres_agents"))
        .args(["--agents", "7"])
        .output()
        .unwrap();
    assert_eq!(example.status.code(), Some(2));
    let said = String::from_utf8(example.stderr).unwrap();
    assert_eq!(
        said,
        "error: --agents 7: expected a number from 200 to 1000000\n"
    );
}
