//! Sound at another rate, by a windowed sinc.

use crate::cpu::{self, Job, add_product};
use crate::{Error, RATE_HZ};

/// Zero crossings of the sinc on either side.
const CROSSINGS: f64 = 32.0;
/// The middle of the slope, as a share of the lower of the two highest frequencies.
const CUT: f64 = 0.94;
/// Of the Kaiser window: 80 dB down where the slope ends.
const BETA: f64 = 8.0;
/// More phases than this are not laid out, but found between two.
const PHASES: u64 = 1024;
/// Sums side by side.
const LANES: usize = 32;
/// Samples that are taken in together.
const PIECE: usize = 1 << 15;

/// Brings mono sound of one rate to 22,050 Hz, piece by piece. The delay of its filter is made good.
#[derive(Debug)]
pub struct Resampler {
    /// Output sample j lies at j * step / parts input samples.
    parts: u64,
    step: u64,
    /// Input samples on either side of an output sample, of which it is made.
    half: usize,
    /// Rows of 2 * half weights: one for each phase; where phases are found between two, one more.
    table: Vec<f32>,
    exact: bool,
    /// Input from the first sample that the next output needs.
    pending: Vec<f32>,
    /// Of the next output sample, in parts of an input sample behind the last whole one.
    phase: u64,
    arrived: u64,
    made: u64,
}

impl Resampler {
    /// Prepares for sound of some rate.
    ///
    /// # Errors
    /// The rate is not between 1,000 and 768,000 Hz.
    pub fn new(rate_hz: u32) -> Result<Self, Error> {
        if !(1_000..=768_000).contains(&rate_hz) {
            let what = format!("a rate of {rate_hz} Hz, where 1,000 to 768,000 Hz are possible");
            return Err(Error::new(what));
        }
        let (rate, target) = (u64::from(rate_hz), u64::from(RATE_HZ));
        let common = divisor(rate, target);
        let (parts, step) = (target / common, rate / common);
        let lower = (f64::from(RATE_HZ) / f64::from(rate_hz)).min(1.0);
        let half = ((CROSSINGS / lower / 16.0).ceil() * 16.0) as usize;
        let exact = parts <= PHASES;
        let rows = if exact { parts } else { PHASES + 1 };
        let table = (0..rows).flat_map(|i| phase(i as f64 / parts.min(PHASES) as f64, half, lower));
        Ok(Self {
            parts,
            step,
            half,
            table: if parts == step { Vec::new() } else { table.collect() },
            exact,
            pending: vec![0.0; half - 1],
            phase: 0,
            arrived: 0,
            made: 0,
        })
    }

    /// Takes in a piece and puts behind `out` what can be made of it. What is not finite counts as silence.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        self.arrived += samples.len() as u64;
        if self.parts == self.step {
            out.extend_from_slice(samples);
            return;
        }
        for piece in samples.chunks(PIECE) {
            self.pending.extend(piece.iter().map(|&v| if v.is_finite() { v } else { 0.0 }));
            self.make(u64::MAX, out);
        }
    }

    /// Puts behind `out` what is left: in all as many samples as last as long as the input did.
    pub fn finish(mut self, out: &mut Vec<f32>) {
        if self.parts == self.step {
            return;
        }
        self.pending.resize(self.pending.len() + self.half + 1, 0.0);
        let whole = (u128::from(self.arrived) * u128::from(self.parts)).div_ceil(u128::from(self.step));
        let left = u64::try_from(whole).unwrap_or(u64::MAX).saturating_sub(self.made);
        self.make(left, out);
    }

    /// Makes at most `limit` samples, as long as there is input.
    fn make(&mut self, limit: u64, out: &mut Vec<f32>) {
        let (step, before) = (self.step, out.len());
        let mut at = 0;
        cpu::run(Make { resampler: self, limit, out, at: &mut at });
        debug_assert!(step > 0);
        self.made += (out.len() - before) as u64;
        self.pending.drain(..at.min(self.pending.len()));
    }
}

struct Make<'a> {
    resampler: &'a mut Resampler,
    limit: u64,
    out: &'a mut Vec<f32>,
    at: &'a mut usize,
}

impl Job for Make<'_> {
    #[inline(always)]
    fn run<const ROWS: usize, const FMA: bool>(self) {
        let Resampler { parts, step, half, exact, .. } = *self.resampler;
        let (table, pending) = (&self.resampler.table, &self.resampler.pending);
        let (taps, mut phase, mut at) = (2 * half, self.resampler.phase, 0);
        let row = |i: usize| &table[i * taps..][..taps];
        for _ in 0..self.limit {
            let Some(x) = pending.get(at..at + taps) else {
                break;
            };
            self.out.push(if exact {
                dot::<FMA>(x, row(phase as usize))
            } else {
                let place = phase as f64 / parts as f64 * PHASES as f64;
                let (left, beyond) = (place as usize, place.fract() as f32);
                let (a, b) = (dot::<FMA>(x, row(left)), dot::<FMA>(x, row(left + 1)));
                a + (b - a) * beyond
            });
            phase += step;
            at += (phase / parts) as usize;
            phase %= parts;
        }
        self.resampler.phase = phase;
        *self.at = at;
    }
}

#[inline(always)]
fn dot<const FMA: bool>(x: &[f32], weights: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (x, _) = x.as_chunks::<LANES>();
    let (weights, _) = weights.as_chunks::<LANES>();
    for (x, weights) in x.iter().zip(weights) {
        for ((sum, v), w) in sums.iter_mut().zip(x).zip(weights) {
            *sum = add_product::<FMA>(*v, *w, *sum);
        }
    }
    sums.iter().sum()
}

/// Returns the weights for an output sample that lies a share of a sample behind the input sample `half - 1`.
fn phase(share: f64, half: usize, lower: f64) -> Vec<f32> {
    let weight = |k: usize| {
        let at = k as f64 - (half - 1) as f64 - share;
        let inside = 1.0 - (at / half as f64).powi(2);
        let angle = std::f64::consts::PI * CUT * lower * at;
        let sinc = if angle == 0.0 { 1.0 } else { angle.sin() / angle };
        sinc * bessel(BETA * inside.max(0.0).sqrt())
    };
    let weights: Vec<f64> = (0..2 * half).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / sum) as f32).collect()
}

/// Returns the modified Bessel function of order zero, by its series.
fn bessel(x: f64) -> f64 {
    let terms = (1..).scan(1.0, |term, k| {
        *term *= (x / 2.0 / f64::from(k)).powi(2);
        Some(*term)
    });
    1.0 + terms.take_while(|&term| term > 1e-12).sum::<f64>()
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::Resampler;

    fn tone(rate: f64, hz: f64, n: usize) -> Vec<f32> {
        (0..n).map(|i| (std::f64::consts::TAU * hz * i as f64 / rate).sin() as f32).collect()
    }

    fn resampled(rate: u32, samples: &[f32], piece: usize) -> Vec<f32> {
        let (mut resampler, mut out) = (Resampler::new(rate).unwrap(), Vec::new());
        for piece in samples.chunks(piece) {
            resampler.push(piece, &mut out);
        }
        resampler.finish(&mut out);
        out
    }

    #[test]
    fn tones_stay_where_they_are() {
        for rate in [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 44_101, 48_000, 96_000, 192_000, 768_000]
        {
            let n = rate as usize / 2 + 17;
            for hz in [100.0, 1_000.0, 3_400.0, 9_000.0] {
                if hz > 0.43 * f64::from(rate) {
                    continue;
                }
                let out = resampled(rate, &tone(f64::from(rate), hz, n), 4_999);
                assert_eq!(out.len(), (n * 22_050).div_ceil(rate as usize), "{rate}");
                let wanted = tone(22_050.0, hz, out.len());
                let inner = 200..out.len() - 200;
                let worst = out[inner.clone()].iter().zip(&wanted[inner]).map(|(a, b)| (a - b).abs());
                let worst = worst.fold(0.0, f32::max);
                assert!(worst < 1e-3, "{rate} {hz} {worst}");
            }
        }
    }

    #[test]
    fn what_cannot_be_kept_is_not_folded_back() {
        let out = resampled(48_000, &tone(48_000.0, 13_000.0, 48_000), 48_000);
        assert!(out[200..out.len() - 200].iter().all(|v| v.abs() < 1e-3));
    }

    #[test]
    fn pieces_do_not_matter_and_rates_have_limits() {
        let samples = tone(44_100.0, 440.0, 5_000);
        let whole = resampled(44_100, &samples, 5_000);
        assert_eq!(whole, resampled(44_100, &samples, 1));
        assert!(resampled(44_100, &[], 1).is_empty());
        assert_eq!(resampled(44_100, &[f32::NAN, 1.0], 1).len(), 1);
        assert!(Resampler::new(0).is_err() && Resampler::new(u32::MAX).is_err());
    }
}
