//! Weights and sounds that `golden.py` makes alike.

#![allow(dead_code)]

/// Names and shapes of the arrays, in the order of the file.
const SHAPES: [(&str, &[usize]); 23] = [
    ("attention.bias", &[1]),
    ("attention.weight", &[80]),
    ("bank", &[128, 1024]),
    ("conv1.bias", &[128]),
    ("conv1.weight", &[128, 64, 3]),
    ("conv2.bias", &[128]),
    ("conv2.depth", &[128, 5]),
    ("conv2.weight", &[128, 128]),
    ("conv3.bias", &[192]),
    ("conv3.depth", &[128, 5]),
    ("conv3.weight", &[192, 128]),
    ("gru.hidden.bias", &[240]),
    ("gru.hidden.weight", &[240, 80]),
    ("gru.input.bias", &[240]),
    ("gru.input.weight", &[240, 129]),
    ("hidden.bias", &[96]),
    ("hidden.weight", &[96, 416]),
    ("in.scale", &[64]),
    ("in.shift", &[64]),
    ("out.bias", &[32]),
    ("out.weight", &[32, 96]),
    ("segment.bias", &[128]),
    ("segment.weight", &[128, 512]),
];

/// Makes noise between -0.5 and 0.5.
pub fn noise(seed: u32, n: usize) -> Vec<f64> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24) - 0.5
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Makes a file of weights that mean nothing: each of the size that training begins with.
pub fn made_up() -> Vec<u8> {
    let (mut entries, mut values) = (Vec::new(), Vec::new());
    for (seed, (name, shape)) in (1..).zip(SHAPES) {
        let n: usize = shape.iter().product();
        let start = values.len();
        for (i, v) in noise(seed, n).into_iter().enumerate() {
            let v = match name {
                "bank" => {
                    let (row, tap) = (i / 1024, i % 1024);
                    if tap.abs_diff(512) > 512 - 6 * (row % 64) { 0.0 } else { v / 64.0 }
                }
                "in.scale" => v + 1.0,
                "attention.weight" => v * (12.0 / n as f64).sqrt(),
                _ if shape.len() == 1 => v / 4.0,
                _ => v * (12.0 / (n / shape[0]) as f64).sqrt(),
            };
            values.extend((v as f32).to_le_bytes());
        }
        let numbers: Vec<String> = shape.iter().map(usize::to_string).collect();
        entries.push(format!(
            r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{start},{}]}}"#,
            numbers.join(","),
            values.len()
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()
}

fn triangle(n: usize, period: usize) -> Vec<f64> {
    (0..n).map(|i| ((i % period) as f64 * 4.0 / period as f64 - 2.0).abs() - 1.0).collect()
}

fn chords(seconds: usize) -> Vec<f64> {
    let chord = |i: usize| {
        let root = 60 + 13 * (i * 5 % 7);
        let notes = [root, root * 4 / 5, root * 2 / 3].map(|period| triangle(44_100, period));
        (0..44_100).map(move |i| notes.iter().map(|note| note[i]).sum::<f64>() / 8.0)
    };
    (0..seconds / 2).flat_map(chord).collect()
}

fn samples(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
    values.into_iter().map(|v| v as f32).collect()
}

/// Returns names of sounds and their samples.
pub fn sounds() -> Vec<(String, Vec<f32>)> {
    let named = |name: &str, samples| (name.to_string(), samples);
    let mut all = vec![
        named("nothing", vec![]),
        named("one-sample", vec![0.5]),
        named("2047-samples", samples(noise(101, 2_047))),
        named("silence-3s", vec![0.0; 66_150]),
        named("silence-100s", vec![0.0; 2_205_000]),
    ];
    for n in [639, 640, 61_439, 61_440, 122_879] {
        all.push((format!("noise-{n}"), samples(noise(n as u32, n))));
    }
    all.push(named("noise-10s", samples(noise(102, 220_500))));
    let pulses = (0..441_000).map(|i| if i % 5_000 == 0 { 0.9 } else { 0.0 });
    all.push(named("pulses-20s", samples(pulses)));
    all.push(named("chords-30s", samples(chords(30))));
    all.push(named("quiet-chords-30s", samples(chords(30).into_iter().map(|v| v / 1_024.0))));
    let mut gap = chords(20);
    gap[44_100 * 2..44_100 * 7].fill(0.0);
    all.push(named("chords-with-a-gap", samples(gap)));
    let n = 2_866_500;
    let tune = chords(26).into_iter().cycle();
    let swelling = noise(103, n).into_iter().zip(triangle(n, 200_000)).zip(tune);
    let swelling = swelling.map(|((v, swell), tune)| v * (swell + 1.0) / 2.0 + tune / 4.0);
    all.push(named("swelling-130s", samples(swelling)));
    let mut holes = samples(noise(104, 110_250));
    (holes[500], holes[40_000]) = (f32::NAN, f32::NAN);
    all.push(named("not-a-number", holes));
    let mut holes = samples(noise(105, 110_250));
    (holes[30_000], holes[90_000]) = (f32::INFINITY, f32::NEG_INFINITY);
    all.push(named("infinite", holes));
    all
}

/// Returns one of the sounds.
pub fn sound(name: &str) -> Vec<f32> {
    sounds().into_iter().find(|(n, _)| n == name).expect("a sound of this name").1
}

/// Returns the largest difference of two vectors.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|v| v.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Writes a WAV file: its format, and the bytes of its sound.
pub fn wav(code: u16, bits: u16, channels: u16, rate_hz: u32, sound: &[u8]) -> Vec<u8> {
    let frame = channels * bits.div_ceil(8);
    let mut out = Vec::new();
    out.extend(b"RIFF");
    out.extend((36 + sound.len() as u32).to_le_bytes());
    out.extend(b"WAVEfmt \x10\0\0\0");
    out.extend(code.to_le_bytes());
    out.extend(channels.to_le_bytes());
    out.extend(rate_hz.to_le_bytes());
    out.extend((rate_hz * u32::from(frame)).to_le_bytes());
    out.extend(frame.to_le_bytes());
    out.extend(bits.to_le_bytes());
    out.extend(b"data");
    out.extend((sound.len() as u32).to_le_bytes());
    out.extend(sound);
    out
}

/// Writes samples as 32-bit floats at 22,050 Hz.
pub fn wav_of(samples: &[f32]) -> Vec<u8> {
    wav(3, 32, 1, 22_050, &samples.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}
