//! A song that arrives in pieces, and one that several threads share.

use std::ops::Range;

use crate::network::{BEFORE, BEHIND, Described, FRAMES, Frames, HOP, Network, Scratch, TAPS};
use crate::{DIM, Model};

/// Segments that are described together.
const BLOCK: usize = 16;

/// Samples that are taken in together.
const PIECE: usize = FRAMES * HOP;

/// The vector of sound that arrives in pieces: the same numbers as of the whole.
///
/// It keeps the powers of less than a minute, and half a kilobyte for each 2.8 seconds: less than 1 MB for an hour.
#[derive(Debug)]
pub struct Stream<'m> {
    model: &'m Model,
    samples: u64,
    part: Part<'m>,
}

impl<'m> Stream<'m> {
    pub(crate) fn new(model: &'m Model) -> Self {
        Self { model, samples: 0, part: Part::new(&model.network, 0) }
    }

    /// Takes in a piece of any length: mono, at 22,050 Hz.
    pub fn push(&mut self, samples: &[f32]) {
        self.samples += samples.len() as u64;
        self.part.push(samples);
    }

    /// Returns how many samples came in.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Returns the vector of all that came in.
    #[must_use]
    pub fn finish(self) -> [f32; DIM] {
        let Self { model, samples, part } = self;
        let described = part.finish(frames(usize::try_from(samples).unwrap_or(usize::MAX)));
        model.network.head(&described)
    }
}

/// Returns how many frames a song has: those that begin in it, and a segment of silence.
fn frames(samples: usize) -> usize {
    samples / HOP + FRAMES
}

/// Describes a song by several threads, which share its segments.
pub(crate) fn describe(network: &Network, samples: &[f32], threads: usize) -> Described {
    let n = frames(samples.len());
    let segments = n / FRAMES;
    // a thread costs more than a few segments
    let threads = threads.clamp(1, segments.div_ceil(BLOCK));
    let range = |i: usize| segments * i / threads..segments * (i + 1) / threads;
    if threads == 1 {
        return describe_range(network, samples, range(0));
    }
    std::thread::scope(|scope| {
        let others: Vec<_> =
            (1..threads).map(|i| scope.spawn(move || describe_range(network, samples, range(i)))).collect();
        let mut all = describe_range(network, samples, range(0));
        for other in others {
            match other.join() {
                Ok(described) => all.append(described),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

/// Describes some of the segments of a song, from their own samples and those next to them.
fn describe_range(network: &Network, samples: &[f32], range: Range<usize>) -> Described {
    let n = frames(samples.len());
    let mut part = Part::new(network, range.start);
    let from = (part.frames.first * HOP).min(samples.len());
    if range.end == n / FRAMES {
        part.push(&samples[from..]);
        return part.finish(n);
    }
    let end = (range.end * FRAMES + BEHIND - 1) * HOP + TAPS;
    part.push(&samples[from..end.min(samples.len())]);
    if end > samples.len() {
        part.add_silence(range.end * FRAMES + BEHIND);
    }
    part.describe(range.end);
    part.described
}

/// Segments that follow each other, described as their samples arrive.
#[derive(Debug)]
struct Part<'m> {
    network: &'m Network,
    /// Samples that are in no whole frame yet, from the beginning of the next frame on.
    pending: Vec<f32>,
    frames: Frames,
    /// The segment that is described next.
    next: usize,
    described: Described,
    scratch: Scratch,
}

impl<'m> Part<'m> {
    /// Begins with a segment; the first sample that comes in is that of `frames.first`.
    fn new(network: &'m Network, first: usize) -> Self {
        let frames = Frames::starting_at((first * FRAMES).saturating_sub(BEFORE));
        Self {
            network,
            pending: Vec::new(),
            frames,
            next: first,
            described: Described::default(),
            scratch: Scratch::default(),
        }
    }

    fn push(&mut self, samples: &[f32]) {
        for piece in samples.chunks(PIECE) {
            self.pending.extend_from_slice(piece);
            self.add_frames();
            let whole = self.frames.end().saturating_sub(BEHIND) / FRAMES;
            if whole >= self.next + BLOCK {
                self.describe(whole);
            }
        }
    }

    /// Makes frames of the samples for which they are whole.
    fn add_frames(&mut self) {
        let before = self.frames.end();
        self.network.add_frames(&self.pending, &mut self.frames, &mut self.scratch);
        self.pending.drain(..(self.frames.end() - before) * HOP);
    }

    /// Describes the segments before `end`, and forgets the frames that no other needs.
    fn describe(&mut self, end: usize) {
        let described = self.network.describe(self.next..end, &self.frames, &mut self.scratch);
        self.described.append(described);
        self.next = end;
        self.frames.forget_before((end * FRAMES).saturating_sub(BEFORE));
    }

    /// Describes what is left of a song of `n` frames.
    fn finish(mut self, n: usize) -> Described {
        self.add_silence(n);
        self.describe(n / FRAMES);
        self.described
    }

    /// Makes the last frames, which reach beyond the end of the song, and silent ones up to `end`.
    fn add_silence(&mut self, end: usize) {
        let sounding = self.pending.len().div_ceil(HOP);
        if sounding > 0 {
            self.pending.resize((sounding - 1) * HOP + TAPS, 0.0);
            self.add_frames();
        }
        self.frames.set_end(end);
    }
}
