//! The same numbers as the reference, whole, in pieces, and by several threads.

mod common;

use common::{difference, made_up, noise, sound, sounds};
use resonance_feel::Model;

/// How far a number may be from that of the reference.
const TOLERANCE: f32 = 1e-5;

/// Compares with a file of golden vectors.
fn compare(model: &Model, golden: &str) {
    let mut lines = golden.lines();
    let digest =
        lines.next().and_then(|line| line.strip_prefix("# weights ")).expect("a line with the digest");
    assert_eq!(model.digest(), digest, "other weights: run golden.py");
    let sounds = sounds();
    let mut worst = (0.0, "");
    for (line, (name, samples)) in lines.by_ref().zip(&sounds) {
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some(name.as_str()));
        let wanted: Vec<f32> = words.map(|word| word.parse().expect("a number")).collect();
        let off = difference(&model.embed(samples), &wanted);
        assert!(off <= TOLERANCE, "{name}: {off:e}");
        worst = if off >= worst.0 { (off, name) } else { worst };
    }
    assert_eq!((lines.next(), golden.lines().count()), (None, 1 + sounds.len()));
    println!("{} sounds; the largest difference is {:.1e}, of {}", sounds.len(), worst.0, worst.1);
}

#[test]
fn made_up_weights() {
    compare(&Model::from_bytes(&made_up()).unwrap(), include_str!("golden_made_up.txt"));
}

#[test]
fn shipped_weights() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    match (Model::shipped(), std::fs::read_to_string(golden)) {
        (Ok(model), Ok(golden)) => compare(&model, &golden),
        (Err(error), Err(_)) => println!("skipped: {error}"),
        (model, golden) => panic!("only one of both: {:?}, {:?}", model.err(), golden.err()),
    }
}

#[test]
fn vectors_have_length_one_and_differ() {
    let model = Model::from_bytes(&made_up()).unwrap();
    let (a, b) = (model.embed(&sound("chords-30s")), model.embed(&sound("noise-10s")));
    assert!(difference(&a, &b) > 0.01);
    for v in [a, b] {
        assert!((v.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn loudness_does_not_matter() {
    let model = Model::from_bytes(&made_up()).unwrap();
    let loud = sound("chords-30s");
    let quiet: Vec<f32> = loud.iter().map(|v| v * 0.25).collect();
    assert!(difference(&model.embed(&loud), &model.embed(&quiet)) < 1e-4);
}

#[test]
fn pieces_and_threads_do_not_matter() {
    let model = Model::from_bytes(&made_up()).unwrap();
    for (name, samples) in sounds() {
        let whole = model.embed(&samples);
        for threads in [2, 3, 7, 1_000] {
            let off = difference(&whole, &model.embed_with_threads(&samples, threads));
            assert!(off <= 1e-6, "{name}, {threads} threads: {off:e}");
        }
        for seed in 0..3 {
            let mut stream = model.stream();
            let (mut rest, mut seed) = (samples.as_slice(), seed);
            while !rest.is_empty() {
                seed += 1;
                let length = noise(seed, 1)[0] + 0.5;
                let (piece, others) = rest.split_at(((length * 150_000.0) as usize).min(rest.len()));
                stream.push(piece);
                rest = others;
            }
            assert_eq!(stream.samples(), samples.len() as u64);
            let off = difference(&whole, &stream.finish());
            assert!(off <= 1e-6, "{name}: {off:e}");
        }
    }
}

#[test]
fn every_length_has_a_vector() {
    let model = Model::from_bytes(&made_up()).unwrap();
    let samples: Vec<f32> = noise(7, 130_000).into_iter().map(|v| v as f32).collect();
    for n in (0..3_000).step_by(53).chain((0..130_000).step_by(3_001)) {
        let mut stream = model.stream();
        samples[..n].chunks(1_000).for_each(|piece| stream.push(piece));
        assert!(difference(&model.embed(&samples[..n]), &stream.finish()) <= 1e-6, "{n}");
    }
}

#[test]
fn huge_samples_have_a_vector() {
    let model = Model::from_bytes(&made_up()).unwrap();
    for samples in [vec![f32::MAX; 70_000], vec![f32::NAN; 70_000], vec![1e-38; 70_000]] {
        assert!(model.embed(&samples).iter().all(|v| v.is_finite()));
    }
}
