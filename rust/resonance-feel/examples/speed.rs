//! How long a song of four minutes takes: `cargo run --release --example speed [WEIGHTS [THREADS]]`.

use std::time::Instant;

use resonance_feel::{Model, RATE_HZ};

fn main() -> Result<(), resonance_feel::Error> {
    let mut words = std::env::args().skip(1);
    let model = words.next().map_or_else(Model::shipped, Model::from_file)?;
    let threads = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
    let seconds = 240;
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    });
    let samples: Vec<f32> = noise.take(seconds * RATE_HZ as usize).collect();
    let took = (0..20).map(|_| {
        let start = Instant::now();
        let vector = model.embed_with_threads(&samples, threads);
        assert!(vector.iter().all(|v| v.is_finite()));
        start.elapsed().as_secs_f64()
    });
    let best = took.fold(f64::INFINITY, f64::min);
    println!(
        "{:.1} ms, {:.4} % of {seconds} s, {threads} thread(s)",
        best * 1e3,
        best / seconds as f64 * 100.0
    );
    Ok(())
}
