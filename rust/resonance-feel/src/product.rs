//! Products of rows with a matrix of weights: most of what the network does.

use std::ops::Range;

use crate::cpu::{self, Job, add_product};

/// Outputs that are computed side by side.
pub(crate) const LANES: usize = 16;

/// Inputs that are taken together, so that their weights stay in the fastest cache.
const CHUNK: usize = 256;

/// Weights of shape (outputs, inputs), laid out in blocks of 16 outputs.
#[derive(Debug)]
pub(crate) struct Matrix {
    blocks: Vec<Block>,
    inputs: usize,
}

/// The weights of 16 outputs, input by input; those before and after `range` are all zero.
#[derive(Debug)]
struct Block {
    range: Range<usize>,
    weights: Vec<[f32; LANES]>,
}

impl Matrix {
    /// Lays out weights that stand in rows, one row for an output.
    pub(crate) fn new(rows: &[f32], inputs: usize) -> Self {
        let rows: Vec<&[f32]> = rows.chunks_exact(inputs.max(1)).collect();
        let blocks = rows.chunks(LANES).map(|some| Block::new(some, inputs)).collect();
        Self { blocks, inputs }
    }

    /// Returns how many numbers a row of a product has: the outputs, rounded up to whole blocks.
    pub(crate) fn width(&self) -> usize {
        self.blocks.len() * LANES
    }

    /// Multiplies `rows` rows, each `stride` behind the one before, and fills `out` with rows of `width()`.
    pub(crate) fn multiply(&self, x: &[f32], stride: usize, rows: usize, out: &mut Vec<f32>) {
        out.clear();
        out.resize(rows * self.width(), 0.0);
        assert!(rows == 0 || (rows - 1) * stride + self.inputs <= x.len(), "rows beyond the end");
        cpu::run(Multiply { matrix: self, x, stride, rows, out });
    }

    /// Multiplies one row with all weights, also with the zeros that `multiply` leaves out.
    ///
    /// What is not finite times zero is not a number, and shall be none here either.
    pub(crate) fn multiply_every_weight(&self, x: &[f32], out: &mut [f32]) {
        for (block, out) in self.blocks.iter().zip(out.chunks_exact_mut(LANES)) {
            out.fill(0.0);
            for (i, &v) in x[..self.inputs].iter().enumerate() {
                let weights = i.checked_sub(block.range.start).and_then(|i| block.weights.get(i));
                for (sum, w) in out.iter_mut().zip(weights.unwrap_or(&[0.0; LANES])) {
                    *sum += v * w;
                }
            }
        }
    }
}

impl Block {
    fn new(rows: &[&[f32]], inputs: usize) -> Self {
        let used = |&i: &usize| rows.iter().any(|row| row[i] != 0.0);
        let start = (0..inputs).find(used).unwrap_or(0);
        let end = (0..inputs).rfind(used).map_or(start, |last| last + 1);
        let lanes = |i| std::array::from_fn(|lane| rows.get(lane).map_or(0.0, |row| row[i]));
        Self { range: start..end, weights: (start..end).map(lanes).collect() }
    }
}

struct Multiply<'a> {
    matrix: &'a Matrix,
    x: &'a [f32],
    stride: usize,
    rows: usize,
    out: &'a mut [f32],
}

impl Job for Multiply<'_> {
    #[inline(always)]
    fn run<const ROWS: usize, const FMA: bool>(self) {
        let width = self.matrix.width();
        for (b, block) in self.matrix.blocks.iter().enumerate() {
            for (c, weights) in block.weights.chunks(CHUNK).enumerate() {
                let first = block.range.start + c * CHUNK;
                let mut row = 0;
                while row < self.rows {
                    let x = &self.x[row * self.stride + first..];
                    let out = &mut self.out[row * width + b * LANES..];
                    if row + ROWS <= self.rows {
                        tile::<ROWS, FMA>(x, self.stride, weights, out, width);
                        row += ROWS;
                    } else {
                        tile::<1, FMA>(x, self.stride, weights, out, width);
                        row += 1;
                    }
                }
            }
        }
    }
}

/// Adds to `out` what `ROWS` rows give with the weights of 16 outputs.
#[inline(always)]
fn tile<const ROWS: usize, const FMA: bool>(
    x: &[f32],
    stride: usize,
    weights: &[[f32; LANES]],
    out: &mut [f32],
    width: usize,
) {
    match ROWS {
        12 => tile_of_12::<FMA>(x, stride, weights, out, width),
        6 => tile_of_6::<FMA>(x, stride, weights, out, width),
        2 => tile_of_2::<FMA>(x, stride, weights, out, width),
        _ => tile_of_1::<FMA>(x, stride, weights, out, width),
    }
}

/// Writes a tile with its rows one by one: only so do all sums stay in registers.
macro_rules! tile {
    ($name:ident, $($row:literal $x:ident $sums:ident),+) => {
        #[inline(always)]
        fn $name<const FMA: bool>(
            x: &[f32],
            stride: usize,
            weights: &[[f32; LANES]],
            out: &mut [f32],
            width: usize,
        ) {
            let n = weights.len();
            $(
                let $x = &x[$row * stride..][..n];
                let mut $sums = [0.0; LANES];
            )+
            for (i, w) in weights.iter().enumerate() {
                $(
                    for (sum, w) in $sums.iter_mut().zip(w) {
                        *sum = add_product::<FMA>($x[i], *w, *sum);
                    }
                )+
            }
            $(
                for (out, sum) in out[$row * width..][..LANES].iter_mut().zip($sums) {
                    *out += sum;
                }
            )+
        }
    };
}

tile!(tile_of_1, 0 x0 s0);
tile!(tile_of_2, 0 x0 s0, 1 x1 s1);
tile!(tile_of_6, 0 x0 s0, 1 x1 s1, 2 x2 s2, 3 x3 s3, 4 x4 s4, 5 x5 s5);
tile!(
    tile_of_12,
    0 x0 s0, 1 x1 s1, 2 x2 s2, 3 x3 s3, 4 x4 s4, 5 x5 s5,
    6 x6 s6, 7 x7 s7, 8 x8 s8, 9 x9 s9, 10 x10 s10, 11 x11 s11
);

#[cfg(test)]
mod tests {
    use super::Matrix;

    #[test]
    fn a_product_is_what_the_definition_says() {
        let (outputs, inputs, rows, stride) = (37, 300, 29, 7);
        let mut weights: Vec<f32> =
            (0..outputs * inputs).map(|i| ((i * 31 % 97) as f32 - 48.0) / 97.0).collect();
        weights.chunks_exact_mut(inputs).for_each(|row| row[..11].fill(0.0));
        let x: Vec<f32> = (0..inputs + rows * stride).map(|i| ((i * 17 % 89) as f32 - 44.0) / 89.0).collect();
        let matrix = Matrix::new(&weights, inputs);
        let (mut out, mut slow) = (Vec::new(), vec![0.0; matrix.width()]);
        matrix.multiply(&x, stride, rows, &mut out);
        for r in 0..rows {
            matrix.multiply_every_weight(&x[r * stride..], &mut slow);
            for o in 0..outputs {
                let exact: f64 = (0..inputs)
                    .map(|i| f64::from(x[r * stride + i]) * f64::from(weights[o * inputs + i]))
                    .sum();
                assert!((f64::from(out[r * matrix.width() + o]) - exact).abs() < 1e-4);
                assert!((f64::from(slow[o]) - exact).abs() < 1e-4);
            }
        }
    }
}
