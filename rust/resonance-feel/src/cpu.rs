//! The inner loops, compiled once for each set of instructions that a processor may have.
//!
//! A [`Job`] is ordinary code, written so that the compiler makes vectors of it. [`run`] starts the copy that was
//! compiled for the best instructions of this processor.

/// Work whose inner loops are worth a copy for each set of instructions. `run` must be `#[inline(always)]`.
pub(crate) trait Job {
    /// Does the work. `ROWS` rows of sums fit into the registers; `FMA`: there is an instruction for a * b + c.
    fn run<const ROWS: usize, const FMA: bool>(self);
}

/// Returns a * b + c. Without the instruction, the standard library's function would be far too slow.
#[inline(always)]
pub(crate) fn add_product<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Runs a job with the best instructions that are there.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) fn run(job: impl Job) {
    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
    fn with_avx512(job: impl Job) {
        job.run::<12, true>();
    }
    #[target_feature(enable = "avx2,fma")]
    fn with_avx2(job: impl Job) {
        job.run::<6, true>();
    }
    match best() {
        // SAFETY: `best` has looked whether the processor has what the function was compiled for
        Best::Avx512 => unsafe { with_avx512(job) },
        // SAFETY: as above
        Best::Avx2 => unsafe { with_avx2(job) },
        Best::Plain => job.run::<2, false>(),
    }
}

/// Runs a job with the instructions that every processor of this kind has.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn run(job: impl Job) {
    // 64-bit ARM has 32 registers and an instruction for a * b + c
    #[cfg(target_arch = "aarch64")]
    job.run::<6, true>();
    #[cfg(not(target_arch = "aarch64"))]
    job.run::<2, false>();
}

/// The best instructions that are there and allowed.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
enum Best {
    Plain,
    Avx2,
    Avx512,
}

/// Looks once what the processor has; the variable `RESONANCE_FEEL_CPU` (`plain` or `avx2`) allows less.
#[cfg(target_arch = "x86_64")]
fn best() -> Best {
    static BEST: std::sync::OnceLock<Best> = std::sync::OnceLock::new();
    *BEST.get_or_init(|| {
        let allowed = std::env::var("RESONANCE_FEEL_CPU").unwrap_or_default();
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match allowed.as_str() {
            "plain" => Best::Plain,
            "avx2" if avx2 => Best::Avx2,
            _ if avx2 && avx512 => Best::Avx512,
            _ if avx2 => Best::Avx2,
            _ => Best::Plain,
        }
    })
}
