//! Sound from WAV files, mixed to mono, piece by piece.

use std::io::{self, Read};

use crate::{Error, Model, Resampler};

/// Bytes that are read together.
const PIECE: usize = 1 << 16;

/// How a sample is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Unsigned8,
    Signed16,
    Signed24,
    Signed32,
    Float32,
    Float64,
}

/// A WAV file that is being read: PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64, with any number of channels.
///
/// RF64 and BW64 are read too; a file that was cut off ends with its last whole sample.
#[derive(Debug)]
pub struct Wav<R> {
    file: R,
    kind: Kind,
    channels: usize,
    rate_hz: u32,
    /// Bytes of sound that are still to come, if the file is as long as it says.
    left: u64,
    bytes: Vec<u8>,
    samples: u64,
}

impl<R: Read> Wav<R> {
    /// Reads all that comes before the sound.
    ///
    /// # Errors
    /// The file is no WAV file, or one of a kind that is not known; the line says why.
    pub fn new(mut file: R) -> Result<Self, Error> {
        let mut head = [0; 12];
        fill(&mut file, &mut head)?;
        let long = matches!(&head[..4], b"RF64" | b"BW64");
        if !(long || &head[..4] == b"RIFF") || &head[8..] != b"WAVE" {
            return Err(Error::new("not a WAV file"));
        }
        let (mut format, mut size_of_long) = (None, u64::MAX);
        loop {
            let mut chunk = [0; 8];
            if fill(&mut file, &mut chunk).is_err() {
                return Err(Error::new("a WAV file without sound"));
            }
            let size = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
            if &chunk[..4] == b"data" {
                let (kind, channels, rate_hz) = format
                    .ok_or_else(|| Error::new("a WAV file that does not say how its samples are written"))?;
                // what is written to a pipe does not know how long it will be
                let left = if size == u32::MAX { size_of_long } else { u64::from(size) };
                return Ok(Self { file, kind, channels, rate_hz, left, bytes: Vec::new(), samples: 0 });
            }
            // the beginning of the chunk, and what is behind it
            let mut beginning = Vec::new();
            let padded = u64::from(size) + u64::from(size % 2);
            let known = padded.min(40);
            file.by_ref().take(known).read_to_end(&mut beginning)?;
            io::copy(&mut file.by_ref().take(padded - known), &mut io::sink())?;
            match &chunk[..4] {
                b"fmt " => format = Some(read_format(&beginning)?),
                b"ds64" => {
                    if let Some(bytes) = beginning.get(8..16) {
                        size_of_long = bytes.iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b));
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns samples a second.
    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Returns how many samples of each channel were read so far.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Returns how long the sound is that was read so far.
    pub fn duration_s(&self) -> f64 {
        self.samples as f64 / f64::from(self.rate_hz)
    }

    /// Puts behind `out` the next samples: the mean of the channels. Returns whether there were any.
    ///
    /// # Errors
    /// The file cannot be read any further.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool, Error> {
        let frame = self.kind.bytes() * self.channels;
        let wanted = (PIECE / frame).max(1) * frame;
        self.bytes.clear();
        let limit = self.left.min(wanted as u64);
        self.file.by_ref().take(limit).read_to_end(&mut self.bytes)?;
        self.left -= self.bytes.len() as u64;
        let scale = 1.0 / self.channels as f32;
        for frame in self.bytes.chunks_exact(frame) {
            let sum: f32 = frame.chunks_exact(self.kind.bytes()).map(|b| self.kind.sample(b)).sum();
            out.push(sum * scale);
        }
        let n = self.bytes.len() / frame;
        self.samples += n as u64;
        Ok(n > 0)
    }

    /// Reads to the end, and makes the vector of the song.
    ///
    /// # Errors
    /// The file cannot be read any further, or its rate is one that cannot be brought to 22,050 Hz.
    pub fn embed(&mut self, model: &Model) -> Result<[f32; crate::DIM], Error> {
        let mut resampler = Resampler::new(self.rate_hz)?;
        let mut stream = model.stream();
        let (mut samples, mut resampled) = (Vec::new(), Vec::new());
        while self.read(&mut samples)? {
            resampler.push(&samples, &mut resampled);
            stream.push(&resampled);
            samples.clear();
            resampled.clear();
        }
        resampler.finish(&mut resampled);
        stream.push(&resampled);
        Ok(stream.finish())
    }
}

/// Returns how samples are written, how many channels there are, and samples a second.
fn read_format(chunk: &[u8]) -> Result<(Kind, usize, u32), Error> {
    let word = |at: usize| match chunk.get(at..at + 2) {
        Some(bytes) => Ok(u16::from_le_bytes([bytes[0], bytes[1]])),
        None => Err(Error::new("a WAV file whose format is cut off")),
    };
    // WAVE_FORMAT_EXTENSIBLE names the code further behind
    let code = if word(0)? == 0xfffe { word(24)? } else { word(0)? };
    let bits = word(14)?;
    let kind = match (code, bits) {
        (1, 8) => Kind::Unsigned8,
        (1, 16) => Kind::Signed16,
        (1, 24) => Kind::Signed24,
        (1, 32) => Kind::Signed32,
        (3, 32) => Kind::Float32,
        (3, 64) => Kind::Float64,
        _ => {
            return Err(Error::new(format!(
                "WAV samples of {bits} bits with the code {code}: PCM and floats are read"
            )));
        }
    };
    let channels = usize::from(word(2)?);
    let rate_hz = u32::from(word(4)?) | u32::from(word(6)?) << 16;
    if channels == 0 || rate_hz == 0 || usize::from(word(12)?) != channels * kind.bytes() {
        return Err(Error::new("a WAV file whose format contradicts itself"));
    }
    Ok((kind, channels, rate_hz))
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::Unsigned8 => 1,
            Self::Signed16 => 2,
            Self::Signed24 => 3,
            Self::Signed32 | Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// Returns the number that some bytes stand for: full scale is one.
    fn sample(self, bytes: &[u8]) -> f32 {
        match *bytes {
            [a] => (f32::from(a) - 128.0) / 128.0,
            [a, b] => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            [a, b, c] => i32::from_le_bytes([0, a, b, c]) as f32 / 2_147_483_648.0,
            [a, b, c, d] if self == Self::Float32 => f32::from_le_bytes([a, b, c, d]),
            [a, b, c, d] => i32::from_le_bytes([a, b, c, d]) as f32 / 2_147_483_648.0,
            [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            _ => 0.0,
        }
    }
}

fn fill(file: &mut impl Read, bytes: &mut [u8]) -> Result<(), Error> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::new("not a WAV file"),
        _ => error.into(),
    })
}
