//! The network: band powers of frames, what is heard in each segment, and one vector of all segments.

use std::ops::Range;

use crate::cpu::{self, Job};
use crate::product::Matrix;
use crate::weights::{Tensor, Tensors};
use crate::{DIM, Error};

/// Samples from frame to frame.
pub(crate) const HOP: usize = 640;
/// Samples that a filter hears.
pub(crate) const TAPS: usize = 1024;
/// Frames of a segment.
pub(crate) const FRAMES: usize = 96;
/// Bands, each of two filters.
pub(crate) const BANDS: usize = 64;

/// Frames before a segment that its description depends on: 13 for the convolutions, 48 for the level around those.
pub(crate) const BEFORE: usize = 64;
/// Frames behind a segment that its description depends on: 6, and 48.
pub(crate) const BEHIND: usize = 56;
/// Of these, the frames that the convolutions hear; both are whole numbers of their strides of 8.
const HEARD_BEFORE: usize = 16;
const HEARD_BEHIND: usize = 8;
/// Half of the frames over which the level around a frame is taken, without the frame itself.
const HALF: usize = FRAMES / 2;

const LARGEST_POWER: f32 = 1e6;
const LIVE: f32 = 1e-11;

/// The weights, laid out for use.
#[derive(Debug)]
pub(crate) struct Network {
    bank: Matrix,
    in_scale: Vec<f32>,
    in_shift: Vec<f32>,
    convolutions: [Layer; 3],
    /// For the second and third: five weights of each channel, tap by tap.
    depths: [Vec<f32>; 2],
    segment: Layer,
    gru_input: Layer,
    gru_hidden: Layer,
    attention: Layer,
    hidden: Layer,
    out: Layer,
    /// Channels behind the first two convolutions, behind the third, of a segment, and of the state.
    sizes: [usize; 4],
}

/// Weights and what is added.
#[derive(Debug)]
struct Layer {
    matrix: Matrix,
    bias: Vec<f32>,
}

/// What was heard, segment by segment.
#[derive(Debug, Default)]
pub(crate) struct Described {
    /// Rows of what is heard.
    heard: Vec<f32>,
    /// The logarithm of each segment's level.
    loud: Vec<f32>,
    /// The share of each segment's frames that are not silent.
    share: Vec<f32>,
}

impl Described {
    /// Puts what comes later behind.
    pub(crate) fn append(&mut self, mut later: Self) {
        self.heard.append(&mut later.heard);
        self.loud.append(&mut later.loud);
        self.share.append(&mut later.share);
    }
}

/// Frames on hand: their powers and levels, and which frame of the song is the first.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    pub(crate) first: usize,
    powers: Vec<f32>,
    levels: Vec<f32>,
}

impl Frames {
    /// Begins with a frame.
    pub(crate) fn starting_at(first: usize) -> Self {
        Self { first, ..Self::default() }
    }

    /// Returns the number of the frame behind the last.
    pub(crate) fn end(&self) -> usize {
        self.first + self.levels.len()
    }

    /// Forgets what comes before a frame.
    pub(crate) fn forget_before(&mut self, frame: usize) {
        let n = frame.saturating_sub(self.first).min(self.levels.len());
        self.powers.drain(..n * BANDS);
        self.levels.drain(..n);
        self.first += n;
    }

    /// Lets the frames end where the song does, with silent ones where there are too few.
    pub(crate) fn set_end(&mut self, end: usize) {
        let n = end.saturating_sub(self.first);
        self.powers.resize(n * BANDS, 0.0);
        self.levels.resize(n, 0.0);
    }
}

/// Room for what is computed on the way, so that it is asked for only once.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    swing: Vec<f32>,
    levels: Vec<f32>,
    live: Vec<f32>,
    around: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
    depth: Vec<f32>,
    product: Vec<f32>,
    masks: [Vec<f32>; 3],
    stats: Vec<f32>,
}

impl Network {
    /// Checks names and shapes, and lays the weights out.
    pub(crate) fn new(mut tensors: Tensors) -> Result<Self, Error> {
        let size = |name: &str, axis: usize| match tensors.get(name).and_then(|t| t.shape.get(axis)) {
            Some(&n) if (1..=4096).contains(&n) => Ok(n),
            Some(n) => Err(Error::new(format!("tensor {name:?}: {n} is no size for this network"))),
            None => Err(Error::new(format!("tensor {name:?} is missing, or has too few axes"))),
        };
        let (w, c) = (size("conv1.weight", 0)?, size("conv3.weight", 0)?);
        let (s, g, f) =
            (size("segment.weight", 0)?, size("gru.hidden.weight", 1)?, size("hidden.weight", 0)?);
        let mut take = |name: &str, shape: &[usize]| take(&mut tensors, name, shape);

        let bank = Matrix::new(&take("bank", &[2 * BANDS, TAPS])?, TAPS);
        let (in_scale, in_shift) = (take("in.scale", &[BANDS])?, take("in.shift", &[BANDS])?);
        let kernel = turned(&take("conv1.weight", &[w, BANDS, 3])?, BANDS, 3);
        let first = Layer { matrix: Matrix::new(&kernel, 3 * BANDS), bias: take("conv1.bias", &[w])? };
        let depths =
            [turned(&take("conv2.depth", &[w, 5])?, w, 5), turned(&take("conv3.depth", &[w, 5])?, w, 5)];
        let mut layer = |name: &str, outputs: usize, inputs: usize| -> Result<Layer, Error> {
            let matrix = Matrix::new(&take(&format!("{name}.weight"), &[outputs, inputs])?, inputs);
            Ok(Layer { matrix, bias: take(&format!("{name}.bias"), &[outputs])? })
        };
        let convolutions = [first, layer("conv2", w, w)?, layer("conv3", c, w)?];
        let segment = layer("segment", s, 2 * (c + BANDS))?;
        let (gru_input, gru_hidden) = (layer("gru.input", 3 * g, s + 1)?, layer("gru.hidden", 3 * g, g)?);
        let (hidden, out) = (layer("hidden", f, 2 * (s + g))?, layer("out", DIM, f)?);
        let weight = take("attention.weight", &[g])?;
        let attention = Layer { matrix: Matrix::new(&weight, g), bias: take("attention.bias", &[1])? };
        if let Some(name) = tensors.keys().next() {
            return Err(Error::new(format!("tensor {name:?} does not belong to this network")));
        }
        Ok(Self {
            bank,
            in_scale,
            in_shift,
            convolutions,
            depths,
            segment,
            gru_input,
            gru_hidden,
            attention,
            hidden,
            out,
            sizes: [w, c, s, g],
        })
    }

    /// Computes the powers of whole frames: of as many as there are samples for.
    pub(crate) fn add_frames(&self, samples: &[f32], frames: &mut Frames, scratch: &mut Scratch) {
        let n = match samples.len().checked_sub(TAPS) {
            Some(more) => more / HOP + 1,
            None => return,
        };
        self.bank.multiply(samples, HOP, n, &mut scratch.swing);
        if !all_finite(samples) {
            for (i, swing) in scratch.swing.chunks_exact_mut(2 * BANDS).enumerate() {
                let frame = &samples[i * HOP..][..TAPS];
                if !all_finite(frame) {
                    self.bank.multiply_every_weight(frame, swing);
                }
            }
        }
        let start = frames.levels.len();
        frames.powers.resize((start + n) * BANDS, 0.0);
        frames.levels.resize(start + n, 0.0);
        cpu::run(Powers {
            swing: &scratch.swing,
            out: &mut frames.powers[start * BANDS..],
            levels: &mut frames.levels[start..],
        });
    }

    /// Describes the segments of a range from the frames on hand, which reach beyond it as far as the song does.
    pub(crate) fn describe(&self, range: Range<usize>, frames: &Frames, scratch: &mut Scratch) -> Described {
        let (start, end) = (range.start * FRAMES, range.end * FRAMES);
        // what the convolutions hear
        let from = start.saturating_sub(HEARD_BEFORE);
        let to = frames.end().min(end + HEARD_BEHIND);
        let rows = to - from;
        self.compare(from, to, frames, scratch);
        let mut channels = BANDS;
        let mut n = rows;
        for i in 0..3 {
            n /= 2;
            self.convolve(i, n, channels, scratch);
            channels = self.convolutions[i].matrix.width();
        }

        // the numbers of each segment: 96 rows of x, 12 rows of y
        let [_, c, s, _] = self.sizes;
        let mut out = Described::default();
        scratch.stats.clear();
        for segment in 0..range.len() {
            let row = start - from + segment * FRAMES;
            let live = &scratch.live[HALF + row..][..FRAMES];
            let y = &scratch.y[row / 8 * channels..];
            let mask = &scratch.masks[2][row / 8..][..FRAMES / 8];
            add_mean_and_spread(y, channels, c, mask, &mut scratch.stats);
            let x = &scratch.x[(1 + row) * BANDS..];
            add_mean_and_spread(x, BANDS, BANDS, live, &mut scratch.stats);

            let share = live.iter().sum::<f32>() / FRAMES as f32;
            let level = scratch.levels[HALF + row..][..FRAMES].iter().sum::<f32>() / FRAMES as f32;
            out.loud.push((level / (share + 1e-6) + 1e-15).ln());
            out.share.push(share);
        }
        let inputs = 2 * (c + BANDS);
        self.segment.matrix.multiply(&scratch.stats, inputs, range.len(), &mut scratch.product);
        for (row, &share) in scratch.product.chunks_exact(self.segment.matrix.width()).zip(&out.share) {
            let live = f32::from(u8::from(share > 0.0));
            let sums = row[..s].iter().zip(&self.segment.bias);
            out.heard.extend(sums.map(|(v, b)| (v + b).max(0.0) * live));
        }
        out
    }

    /// Compares the powers of frames with the level around them: the logarithms go to `x`, behind a row of zeros.
    fn compare(&self, from: usize, to: usize, frames: &Frames, scratch: &mut Scratch) {
        let rows = to - from;
        // levels, and which frames are live, with what lies around
        scratch.levels.clear();
        scratch.levels.resize(rows + 2 * HALF, 0.0);
        let a = from.saturating_sub(HALF).max(frames.first);
        let b = frames.end().min(to + HALF);
        let into = a + HALF - from;
        scratch.levels[into..into + b - a]
            .copy_from_slice(&frames.levels[a - frames.first..b - frames.first]);
        scratch.live.clear();
        scratch.live.extend(scratch.levels.iter().map(|&v| f32::from(u8::from(v > LIVE))));

        scratch.around.resize(rows, 0.0);
        scratch.x.clear();
        scratch.x.resize((1 + rows) * BANDS, 0.0);
        cpu::run(Compare {
            levels: &scratch.levels,
            live: &scratch.live,
            powers: &frames.powers[(from - frames.first) * BANDS..],
            scale: &self.in_scale,
            shift: &self.in_shift,
            around: &mut scratch.around,
            x: &mut scratch.x[BANDS..],
        });
        scratch.masks[0].clear();
        let pairs = scratch.live[HALF..HALF + rows].chunks_exact(2);
        scratch.masks[0].extend(pairs.map(|pair| pair[0].max(pair[1])));
    }

    /// Runs one convolution over every second row; `y` gets `n` rows, with those beyond the ends left out.
    fn convolve(&self, i: usize, n: usize, channels: usize, scratch: &mut Scratch) {
        let Layer { matrix, bias } = &self.convolutions[i];
        if i == 0 {
            // rows 2j - 1, 2j, 2j + 1 follow each other in memory
            matrix.multiply(&scratch.x, 2 * BANDS, n, &mut scratch.product);
        } else {
            scratch.depth.clear();
            scratch.depth.resize(n * channels, 0.0);
            let w = self.sizes[0];
            cpu::run(Depth {
                y: &scratch.y,
                weights: &self.depths[i - 1],
                w,
                channels,
                out: &mut scratch.depth,
            });
            matrix.multiply(&scratch.depth, channels, n, &mut scratch.product);
            let (before, after) = scratch.masks.split_at_mut(i);
            after[0].clear();
            after[0].extend(before[i - 1].chunks_exact(2).map(|pair| pair[0].max(pair[1])));
        }
        std::mem::swap(&mut scratch.y, &mut scratch.product);
        for (row, &live) in scratch.y.chunks_exact_mut(matrix.width()).zip(&scratch.masks[i]) {
            for (v, b) in row.iter_mut().zip(bias) {
                *v = (*v + b).max(0.0) * live;
            }
        }
    }

    /// Makes one vector, of length one, of all segments.
    pub(crate) fn head(&self, song: &Described) -> [f32; DIM] {
        let [_, _, s, g] = self.sizes;
        let n = song.share.len();
        let share_of_all: f64 = song.share.iter().map(|&v| f64::from(v)).sum();
        let loudness = song.loud.iter().zip(&song.share).map(|(&l, &a)| f64::from(l) * f64::from(a));
        let usual = (loudness.sum::<f64>() / (share_of_all + 1e-6)) as f32;

        let mut x = Vec::with_capacity(n * (s + 1));
        for ((heard, &loud), &share) in song.heard.chunks_exact(s).zip(&song.loud).zip(&song.share) {
            x.extend(heard);
            x.push(((loud - usual) / 2.0).clamp(-3.0, 3.0) * f32::from(u8::from(share > 0.0)));
        }
        let mut into = Vec::new();
        self.gru_input.matrix.multiply(&x, s + 1, n, &mut into);
        let states = self.walk(&into);

        // weighted mean and spread of what is heard and of the states
        let mut urges = Vec::new();
        self.attention.matrix.multiply(&states, g, n, &mut urges);
        let mut sums = vec![[0.0_f64; 2]; s + g];
        let mut whole = 0.0;
        for i in 0..n {
            let urge = urges[i * self.attention.matrix.width()] + self.attention.bias[0];
            let weight = f64::from(urge.clamp(-10.0, 10.0)).exp() * f64::from(song.share[i]);
            whole += weight;
            let row = song.heard[i * s..][..s].iter().chain(&states[i * g..][..g]);
            for (sum, &v) in sums.iter_mut().zip(row) {
                let v = f64::from(v);
                sum[0] += weight * v;
                sum[1] += weight * v * v;
            }
        }
        let means = sums.iter().map(|sum| sum[0] / (whole + 1e-9));
        let spreads = sums.iter().map(|sum| {
            let mean = sum[0] / (whole + 1e-9);
            ((sum[1] / (whole + 1e-9) - mean * mean).max(0.0) + 1e-2).sqrt()
        });
        let stats: Vec<f32> = means.chain(spreads).map(|v| v as f32).collect();

        let hidden: Vec<f32> = self.hidden.apply(&stats).iter().map(|v| v.max(0.0)).collect();
        let out = self.out.apply(&hidden);
        let length = out.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt() + 1e-9;
        std::array::from_fn(|i| (f64::from(out[i]) / length) as f32)
    }

    /// Runs the recurrent unit; returns its state after each row.
    fn walk(&self, into: &[f32]) -> Vec<f32> {
        let g = self.sizes[3];
        let mut state = vec![0.0_f32; g];
        let mut states = Vec::with_capacity(into.len() / 3);
        let mut from = Vec::new();
        for row in into.chunks_exact(self.gru_input.matrix.width()) {
            self.gru_hidden.matrix.multiply(&state, g, 1, &mut from);
            let input = |i: usize| row[i] + self.gru_input.bias[i];
            let own = |i: usize| from[i] + self.gru_hidden.bias[i];
            for (i, v) in state.iter_mut().enumerate() {
                let reset = sigmoid(input(i) + own(i));
                let keep = sigmoid(input(g + i) + own(g + i));
                let candidate = (input(2 * g + i) + reset * own(2 * g + i)).tanh();
                *v = (1.0 - keep) * candidate + keep * *v;
            }
            states.extend(&state);
        }
        states
    }
}

impl Layer {
    /// Applies the layer to one row.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        self.matrix.multiply(x, x.len(), 1, &mut out);
        out.iter().zip(&self.bias).map(|(v, b)| v + b).collect()
    }
}

/// Takes the values of an array that must be there, with a shape that it must have.
fn take(tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
    match tensors.remove(name) {
        Some(Tensor { shape: found, values }) if found == shape => Ok(values),
        Some(Tensor { shape: found, .. }) => {
            Err(Error::new(format!("tensor {name:?} has the shape {found:?}, not {shape:?}")))
        }
        None => Err(Error::new(format!("tensor {name:?} is missing"))),
    }
}

/// Turns the last two axes round: (…, rows, columns) to (…, columns, rows).
fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for plane in values.chunks_exact(rows * columns) {
        for column in 0..columns {
            out.extend((0..rows).map(|row| plane[row * columns + column]));
        }
    }
    out
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, v| finite & v.is_finite())
}

fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + (-v).exp())
}

/// Appends the means and spreads of rows, over those that are live: `wanted` numbers of each row of `width`.
fn add_mean_and_spread(rows: &[f32], width: usize, wanted: usize, live: &[f32], out: &mut Vec<f32>) {
    let share = live.iter().sum::<f32>() / live.len() as f32 + 1e-6;
    let at = out.len();
    out.resize(at + 2 * wanted, 0.0);
    let (means, spreads) = out[at..].split_at_mut(wanted);
    for (row, &live) in rows.chunks_exact(width).zip(live) {
        for ((&v, mean), square) in row.iter().zip(means.iter_mut()).zip(spreads.iter_mut()) {
            *mean += v * live;
            *square += v * v * live;
        }
    }
    let scale = 1.0 / (live.len() as f32 * share);
    for (mean, spread) in means.iter_mut().zip(spreads) {
        *mean *= scale;
        *spread = ((*spread * scale - *mean * *mean).max(0.0) + 1e-2).sqrt();
    }
}

/// Squares and adds what the two filters of each band gave; what is not a number counts as silence.
struct Powers<'a> {
    swing: &'a [f32],
    out: &'a mut [f32],
    levels: &'a mut [f32],
}

impl Job for Powers<'_> {
    #[inline(always)]
    fn run<const ROWS: usize, const FMA: bool>(self) {
        let (swings, _) = self.swing.as_chunks::<{ 2 * BANDS }>();
        let (powers, _) = self.out.as_chunks_mut::<BANDS>();
        for ((swing, power), level) in swings.iter().zip(powers).zip(self.levels) {
            let mut sums = [0.0; 16];
            for i in 0..BANDS {
                let p = swing[i] * swing[i] + swing[BANDS + i] * swing[BANDS + i];
                power[i] = if p >= 0.0 { p.min(LARGEST_POWER) } else { 0.0 };
                sums[i % 16] += power[i];
            }
            *level = sums.iter().sum::<f32>() / BANDS as f32;
        }
    }
}

/// Compares powers with the level around their frame.
struct Compare<'a> {
    /// Of the frames, and of `HALF` before and behind.
    levels: &'a [f32],
    live: &'a [f32],
    powers: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    around: &'a mut [f32],
    x: &'a mut [f32],
}

impl Job for Compare<'_> {
    #[inline(always)]
    fn run<const ROWS: usize, const FMA: bool>(self) {
        const SIDE: usize = 16; // frames side by side
        const MEAN: f64 = 1.0 / (FRAMES as f64 + 1.0);
        for (c, around) in self.around.chunks_mut(SIDE).enumerate() {
            let (mut level, mut live) = ([0.0_f64; SIDE], [0.0_f32; SIDE]);
            let n = around.len();
            for j in c * SIDE..=c * SIDE + FRAMES {
                for i in 0..n {
                    level[i] += f64::from(self.levels[j + i]);
                    live[i] += self.live[j + i];
                }
            }
            for i in 0..n {
                let share = (f64::from(live[i]) * MEAN) as f32;
                around[i] = (level[i] * MEAN) as f32 / (share + 1e-6) + 1e-15;
            }
        }
        let (scale, shift) = (&self.scale[..BANDS], &self.shift[..BANDS]);
        let (powers, _) = self.powers.as_chunks::<BANDS>();
        let (x, _) = self.x.as_chunks_mut::<BANDS>();
        for (row, out) in x.iter_mut().enumerate() {
            let (live, share) = (self.live[HALF + row], 1.0 / self.around[row]);
            for i in 0..BANDS {
                out[i] = (ln(powers[row][i] * share + 1e-4) * scale[i] + shift[i]) * live;
            }
        }
    }
}

/// The natural logarithm of a positive number that is neither tiny nor infinite, to the last digit but one.
///
/// The way and the four constants are those of `logf` in FreeBSD's msun; this one the compiler makes vectors of.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const ROOT_HALF: u32 = 0x3f35_04f3;
    let bits = x.to_bits().wrapping_add(0x3f80_0000 - ROOT_HALF);
    let exponent = ((bits >> 23).cast_signed() - 0x7f) as f32;
    let f = f32::from_bits((bits & 0x007f_ffff) + ROOT_HALF) - 1.0;
    let s = f / (2.0 + f);
    let (z, w) = (s * s, s * s * s * s);
    let r = z * (0.666_666_6 + w * 0.284_987_87) + w * (0.400_009_72 + w * 0.242_790_79);
    let half = 0.5 * f * f;
    s * (half + r) + exponent * 9.058_001e-6 - half + f + exponent * 0.693_138_1
}

/// A convolution of each channel by itself, over every second row, with two rows of zeros before and one behind.
struct Depth<'a> {
    y: &'a [f32],
    /// Five rows of `w`.
    weights: &'a [f32],
    w: usize,
    /// Of a row of `y` and of `out`; those from `w` on are zero.
    channels: usize,
    out: &'a mut [f32],
}

impl Job for Depth<'_> {
    #[inline(always)]
    fn run<const ROWS: usize, const FMA: bool>(self) {
        let rows = self.y.len() / self.channels;
        for (i, out) in self.out.chunks_exact_mut(self.channels).enumerate() {
            for (tap, weights) in self.weights.chunks_exact(self.w).enumerate() {
                let Some(row) = (2 * i + tap).checked_sub(2).filter(|&row| row < rows) else {
                    continue;
                };
                let y = &self.y[row * self.channels..][..self.w];
                for ((out, y), w) in out.iter_mut().zip(y).zip(weights) {
                    *out += y * w;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ln;

    #[test]
    fn logarithms_are_right() {
        for i in -5_000..=30_000 {
            let x = (f64::from(i) / 500.0).exp() as f32;
            let exact = f64::from(x).ln();
            assert!((f64::from(ln(x)) - exact).abs() < 1.5e-7 * exact.abs().max(1.0), "{x}");
        }
    }
}
