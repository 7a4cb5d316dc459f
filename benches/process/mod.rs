//! What the benches ask the kernel of this process.

use std::time::Duration;

/// Resident memory in bytes; 0 where the kernel does not tell.
#[allow(dead_code, reason = "not every bench asks for it")]
pub(crate) fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kb: Option<u64> = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kb.unwrap_or(0) * 1024
}

/// The processor time of this process so far.
#[allow(dead_code, reason = "not every bench asks for it")]
pub(crate) fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
