//! Names the file of weights that goes into the library, where there is one.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(shipped)");
    println!("cargo::rerun-if-env-changed=RESONANCE_FEEL_WEIGHTS");
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let named = env::var_os("RESONANCE_FEEL_WEIGHTS").map(PathBuf::from);
    let weights = named.unwrap_or_else(|| here.join("../../resonance_nb/models/feel.safetensors"));
    // what is not there would be looked for, and everything built anew, each time
    if let Some(watched) = weights.ancestors().take(2).find(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    if let Some(path) = absolute(&weights) {
        println!("cargo::rustc-cfg=shipped");
        println!("cargo::rustc-env=RESONANCE_FEEL_SHIPPED={path}");
    }
}

fn absolute(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    path.is_file().then_some(())?;
    path.to_str().map(String::from)
}
