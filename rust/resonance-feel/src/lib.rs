//! What a song feels like, as 32 numbers: songs that feel alike have vectors that are close.
//!
//! ```no_run
//! let model = resonance_feel::Model::from_file("feel.safetensors")?;
//! let samples: Vec<f32> = vec![0.0; 22_050]; // mono, 22,050 Hz
//! let vector: [f32; 32] = model.embed(&samples);
//! # Ok::<(), resonance_feel::Error>(())
//! ```
//!
//! Sound of any length has a vector, also none at all: see the README. What is not a number counts as silence.

mod cpu;
mod digest;
mod error;
mod json;
mod network;
mod product;
mod resample;
mod stream;
mod wav;
mod weights;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use error::Error;
pub use resample::Resampler;
pub use stream::Stream;
pub use wav::Wav;

/// Samples a second of the sound that a model hears.
pub const RATE_HZ: u32 = 22_050;

/// Numbers of a vector.
pub const DIM: usize = 32;

/// A trained network. It can be shared between threads.
#[derive(Debug)]
pub struct Model {
    network: network::Network,
    digest: String,
}

impl Model {
    /// Opens the model that was built into this library.
    ///
    /// # Errors
    /// None was there when the library was built.
    pub fn shipped() -> Result<Self, Error> {
        #[cfg(shipped)]
        return Self::from_bytes(include_bytes!(env!("RESONANCE_FEEL_SHIPPED")));
        #[cfg(not(shipped))]
        Err(Error::new("no weights were built into this program; name a file of weights"))
    }

    /// Reads a model from a safetensors file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no weights of this network; the line says why.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let read = || {
            let mut bytes = Vec::new();
            let limit = weights::LARGEST_FILE as u64 + 1;
            File::open(path)?.take(limit).read_to_end(&mut bytes)?;
            Self::from_bytes(&bytes)
        };
        read().map_err(|error| error.about(path.display()))
    }

    /// Reads a model from the bytes of a safetensors file.
    ///
    /// # Errors
    /// The bytes are no weights of this network; the line says why.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let network = network::Network::new(weights::read(bytes)?)?;
        Ok(Self { network, digest: digest::sha256(bytes) })
    }

    /// Returns the SHA-256 of the file of weights. Store it beside each vector: only vectors of one model compare.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Makes the vector of a song, of length one: mono samples at 22,050 Hz, as many as there are.
    #[must_use]
    pub fn embed(&self, samples: &[f32]) -> [f32; DIM] {
        self.embed_with_threads(samples, 1)
    }

    /// Makes the vector of a song, with its segments shared between some threads.
    #[must_use]
    pub fn embed_with_threads(&self, samples: &[f32], threads: usize) -> [f32; DIM] {
        self.network.head(&stream::describe(&self.network, samples, threads))
    }

    /// Begins a song that arrives in pieces.
    #[must_use]
    pub fn stream(&self) -> Stream<'_> {
        Stream::new(self)
    }
}
