//! Files that are damaged, or lie: a line that says what is wrong, or sound, and never a panic.

mod common;

use common::{difference, made_up, noise, wav, wav_of};
use resonance_feel::{Error, Model, Wav};

fn no_model(bytes: &[u8]) -> String {
    let error: Error = Model::from_bytes(bytes).expect_err("these are no weights");
    let line = error.to_string();
    assert!(!line.is_empty() && line.len() < 300 && !line.contains('\n'), "{line}");
    line
}

/// Puts a header before some values.
fn file(header: &str, values: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), values].concat()
}

/// Returns the made-up weights with another text in the header.
fn with_header(from: &str, to: &str) -> Vec<u8> {
    let bytes = made_up();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = str::from_utf8(&bytes[8..8 + length]).unwrap();
    assert!(header.contains(from), "{from}");
    file(&header.replacen(from, to, 1), &bytes[8 + length..])
}

#[test]
fn weights_that_are_cut_off() {
    let whole = made_up();
    assert!(Model::from_bytes(&whole).is_ok());
    for length in (0..3_000).chain((3_000..whole.len()).step_by(50_021)).chain([whole.len() - 1]) {
        no_model(&whole[..length]);
    }
    no_model(&[whole, vec![0]].concat());
}

#[test]
fn weights_with_other_bytes() {
    let whole = made_up();
    let random = noise(9, 3_000);
    for (i, pair) in random.chunks_exact(2).enumerate() {
        let mut bytes = whole.clone();
        // most damage to the header
        let reach = if i % 10 == 0 { whole.len() } else { 1_800 };
        let at = ((pair[0] + 0.5) * reach as f64) as usize;
        bytes[at] = ((pair[1] + 0.5) * 256.0) as u8;
        match Model::from_bytes(&bytes) {
            Ok(model) => assert!(model.embed(&[0.1; 3_000]).iter().all(|v| v.is_finite())),
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
    }
}

#[test]
fn headers_that_lie() {
    let f32s = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    for (bytes, says) in [
        (file("{}", b""), "missing"),
        (file("[]", b""), "not an object"),
        (file("{", b""), "JSON"),
        (file("\u{feff}{}", b""), "JSON"),
        (file(&"[".repeat(1_000_000), b""), "too deep"),
        (file(r#"{"__metadata__":{"a":"b"}}"#, b""), "missing"),
        (file(r#"{"a":1}"#, b""), "no dtype"),
        (file(r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]), "F16"),
        (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]), "do not make the shape"),
        (file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, &[0; 4]), "no shape"),
        (file(r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, &[0; 4]), "no shape"),
        (file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, &[0; 4]), "outside"),
        (file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 4]), "outside"),
        (file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, &[0; 4]), "data_offsets"),
        (
            file(
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#,
                &[0; 4],
            ),
            "do not make",
        ),
        (file(r#"{"a":{"dtype":"F32","shape":[1e300],"data_offsets":[0,4]}}"#, &[0; 4]), "no shape"),
        (file(&format!(r#"{{"a":{f32s},"a":{f32s}}}"#), &[0; 4]), "twice"),
        (file(&format!(r#"{{"a":{f32s},"b":{f32s}}}"#), &[0; 4]), "overlap"),
        (file(&format!(r#"{{"a":{f32s}}}"#), &[0; 8]), "belong to no array"),
        (file(&format!(r#"{{"a":{f32s}}}"#), &f32::NAN.to_le_bytes()), "not a number"),
        (file(&format!(r#"{{"a":{f32s}}}"#), &f32::MAX.to_le_bytes()), "too large"),
        (u64::MAX.to_le_bytes().to_vec(), "header is longer"),
        (b"RIFF".to_vec(), "too short"),
        (with_header("\"bank\"", "\"tank\""), "\"bank\" is missing"),
        (
            with_header(
                "\"bank\":{\"dtype\":\"F32\",\"shape\":[128,1024]",
                "\"bank\":{\"dtype\":\"F32\",\"shape\":[1024,128]",
            ),
            "has the shape",
        ),
        (with_header("[96,416]", "[416,96]"), "has the shape"),
        (with_header("[128,64,3]", "[0,64,3]"), "do not make"),
    ] {
        let line = no_model(&bytes);
        assert!(line.contains(says), "{line:?} where {says:?} was expected");
    }
}

#[test]
fn an_array_too_many() {
    let bytes = made_up();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let values = &bytes[8 + length..];
    let more = format!(
        r#","more":{{"dtype":"F32","shape":[1],"data_offsets":[{0},{1}]}}}}"#,
        values.len(),
        values.len() + 4
    );
    let header =
        str::from_utf8(&bytes[8..8 + length]).unwrap().strip_suffix('}').unwrap().to_string() + &more;
    let line = no_model(&file(&header, &[values, &[0; 4]].concat()));
    assert!(line.contains("does not belong"), "{line}");
}

fn read(bytes: &[u8]) -> Result<Vec<f32>, Error> {
    let mut wav = Wav::new(bytes)?;
    let mut samples = Vec::new();
    while wav.read(&mut samples)? {}
    assert_eq!(wav.samples(), samples.len() as u64);
    Ok(samples)
}

#[test]
fn every_kind_of_sample_is_read() {
    let wanted = [0.5, -0.25, -1.0, 0.0];
    let sound = |bytes: &dyn Fn(f32) -> Vec<u8>| wanted.iter().flat_map(|&v| bytes(v)).collect::<Vec<u8>>();
    for (code, bits, sound) in [
        (1, 8, sound(&|v| vec![(v * 128.0 + 128.0) as u8])),
        (1, 16, sound(&|v| ((v * 32_768.0) as i16).to_le_bytes().to_vec())),
        (1, 24, sound(&|v| ((v * 8_388_608.0) as i32).to_le_bytes()[..3].to_vec())),
        (1, 32, sound(&|v| ((f64::from(v) * 2_147_483_648.0) as i32).to_le_bytes().to_vec())),
        (3, 32, sound(&|v| v.to_le_bytes().to_vec())),
        (3, 64, sound(&|v| f64::from(v).to_le_bytes().to_vec())),
    ] {
        assert_eq!(read(&wav(code, bits, 1, 22_050, &sound)).unwrap(), wanted);
        assert_eq!(read(&wav(code, bits, 2, 22_050, &sound)).unwrap(), [0.125, -0.5]);
        assert_eq!(read(&wav(code, bits, 3, 22_050, &sound)).unwrap(), [-0.25]);
        assert_eq!(read(&wav(code, bits, 4, 22_050, &sound)).unwrap(), [-0.1875]);
    }
}

#[test]
fn many_channels_and_long_names() {
    let sound: Vec<u8> = (0..3).flat_map(|_| vec![0x40; 60_000]).collect();
    let samples = read(&wav(1, 8, 60_000, 8_000, &sound)).unwrap();
    assert!(samples.len() == 3 && samples.iter().all(|v| (v + 0.5).abs() < 1e-3));
}

#[test]
fn chunks_and_sizes() {
    let plain = wav(1, 16, 1, 22_050, &[0, 64, 0, 32]);
    let (head, data) = plain.split_at(36);
    let wanted = [0.5, 0.25];
    assert_eq!(read(&plain).unwrap(), wanted);
    // other chunks before the sound, of odd sizes, and behind it
    let other = [head, b"LIST\x03\0\0\0abc\0", data, b"id3 \x01\0\0\0a\0"].concat();
    assert_eq!(read(&other).unwrap(), wanted);
    // sizes that a pipe does not know, or that lie
    for size in [u32::MAX, 1_000_000] {
        let mut bytes = plain.clone();
        bytes[40..44].copy_from_slice(&size.to_le_bytes());
        assert_eq!(read(&bytes).unwrap(), wanted);
    }
    let mut long = plain.clone();
    long[..4].copy_from_slice(b"RF64");
    long[40..44].copy_from_slice(&[0xff; 4]);
    let mut sizes = b"ds64\x1c\0\0\0".to_vec();
    for size in [0_u64, 4, 0] {
        sizes.extend(size.to_le_bytes());
    }
    sizes.extend([0; 4]);
    long.splice(12..12, sizes);
    long.extend(b"junk\x04\0\0\0abcd");
    assert_eq!(read(&long).unwrap(), wanted);
    // WAVE_FORMAT_EXTENSIBLE
    let mut extended = wav(0xfffe, 16, 1, 22_050, &[0, 64, 0, 32]);
    extended[16] = 40;
    extended
        .splice(36..36, [[22, 0, 16, 0, 4, 0, 0, 0, 1, 0], [0; 10], [0; 10]].concat()[..24].iter().copied());
    assert_eq!(read(&extended).unwrap(), wanted);
    // half a sample at the end
    assert_eq!(read(&[plain, vec![1]].concat()[..47]).unwrap(), wanted[..1]);
}

#[test]
fn what_is_no_sound() {
    let plain = wav(1, 16, 2, 44_100, &[0; 400]);
    for length in 0..44 {
        assert!(read(&plain[..length]).is_err(), "{length}");
    }
    let two = |at: usize, value: u16| {
        let mut bytes = plain.clone();
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for bytes in
        [two(20, 2), two(20, 0xfffe), two(22, 0), two(22, 65_535), two(32, 3), two(34, 12), two(16, 8)]
    {
        let line = read(&bytes).expect_err("no sound").to_string();
        assert!(!line.contains('\n'), "{line}");
    }
    assert!(read(b"RIFF\0\0\0\0AVI LIST").is_err());
    assert!(
        read(&[b"RIFF\0\0\0\0WAVE".as_slice(), &plain[36..]].concat()).is_err(),
        "sound before its format"
    );
    let model = Model::from_bytes(&made_up()).unwrap();
    for rate in [0, 1, 999, u32::MAX] {
        let mut bytes = plain.clone();
        bytes[24..28].copy_from_slice(&rate.to_le_bytes());
        assert!(Wav::new(bytes.as_slice()).and_then(|mut wav| wav.embed(&model)).is_err(), "{rate}");
    }
}

#[test]
fn damaged_files_never_panic() {
    let model = Model::from_bytes(&made_up()).unwrap();
    let whole = wav(3, 32, 2, 48_000, &[1; 900]);
    for (i, pair) in noise(10, 40_000).chunks_exact(2).enumerate() {
        let mut bytes = whole.clone();
        let reach = if i % 10 == 0 { whole.len() } else { 44 };
        bytes[((pair[0] + 0.5) * reach as f64) as usize] = ((pair[1] + 0.5) * 256.0) as u8;
        if let Ok(samples) = read(&bytes) {
            assert!(samples.len() <= whole.len());
        }
        if i % 50 == 0 {
            let vector = Wav::new(bytes.as_slice()).and_then(|mut wav| wav.embed(&model));
            assert!(vector.map_or(true, |vector| vector.iter().all(|v| v.is_finite())));
        }
    }
}

#[test]
fn a_file_has_the_vector_of_its_samples() {
    let model = Model::from_bytes(&made_up()).unwrap();
    for name in ["nothing", "one-sample", "chords-30s", "not-a-number"] {
        let samples = common::sound(name);
        let bytes = wav_of(&samples);
        let mut wav = Wav::new(bytes.as_slice()).unwrap();
        let vector = wav.embed(&model).unwrap();
        assert!(difference(&vector, &model.embed(&samples)) <= 1e-6, "{name}");
        assert!((wav.duration_s() - samples.len() as f64 / 22_050.0).abs() < 1e-9);
    }
}
