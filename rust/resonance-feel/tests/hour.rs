//! A song of an hour, in a process of its own, whose memory is looked at.

mod common;

use common::{made_up, noise};
use resonance_feel::{Model, RATE_HZ};

/// Returns the most memory that this process has had, in bytes, where the system says so.
fn most_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
}

#[test]
fn an_hour_needs_little_memory() {
    let model = Model::from_bytes(&made_up()).unwrap();
    let piece: Vec<f32> = noise(8, RATE_HZ as usize * 10).into_iter().map(|v| v as f32).collect();
    let before = most_memory();
    let mut stream = model.stream();
    for _ in 0..360 {
        stream.push(&piece);
    }
    assert!(stream.finish().iter().all(|v| v.is_finite()));
    match (before, most_memory()) {
        (Some(before), Some(after)) => {
            println!("{} KiB more", (after - before) >> 10);
            assert!(after - before < 16 << 20, "{} bytes more", after - before);
        }
        _ => println!("skipped: this system does not say how much memory a process has"),
    }
}
