//! `resonance-feel FILE.wav…`: one line of JSON for each song, with its 32 numbers.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use resonance_feel::{DIM, Error, Model, Wav};

const USAGE: &str = "usage: resonance-feel FILE.wav… [--weights PATH]

Prints one line of JSON for each file: {\"path\", \"embedding\", \"duration_s\"}.

  --weights PATH  a file of weights (safetensors) in place of the one that was built in
  --digest        print the SHA-256 of the weights, and end
  --version, --help";

fn main() -> ExitCode {
    match run(env::args_os().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        // whoever reads the answers has gone
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string()),
    }
}

/// Says in one line what is wrong.
fn complain(what: &str) -> ExitCode {
    let line: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // there is nobody else to tell
    let _ = writeln!(io::stderr(), "resonance-feel: {line}");
    ExitCode::from(2)
}

/// Does what is asked; returns whether all went well.
fn run(words: impl Iterator<Item = OsString>) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let (mut files, mut weights, mut digest) = (Vec::new(), None, false);
    let mut words = words;
    let mut options = true;
    while let Some(word) = words.next() {
        match word.to_str().filter(|_| options) {
            Some("--help" | "-h") => return writeln!(out, "{USAGE}").map(|()| true),
            Some("--version") => return writeln!(out, "{}", env!("CARGO_PKG_VERSION")).map(|()| true),
            Some("--digest") => digest = true,
            Some("--weights") => match words.next() {
                Some(path) => weights = Some(PathBuf::from(path)),
                None => return Ok(wrong("--weights needs a path")),
            },
            Some("--") => options = false,
            Some(option) if option.starts_with('-') => {
                return Ok(wrong(&format!("no option {option:?}; see --help")));
            }
            _ => files.push(PathBuf::from(word)),
        }
    }
    if files.is_empty() && !digest {
        return Ok(wrong("which files? See --help"));
    }
    let model = match weights.map_or_else(Model::shipped, Model::from_file) {
        Ok(model) => model,
        Err(error) => return Ok(wrong(&error.to_string())),
    };
    if digest {
        return writeln!(out, "{}", model.digest()).map(|()| true);
    }
    let mut well = true;
    for path in &files {
        match embed(&model, path) {
            Ok((vector, duration_s)) => {
                writeln!(out, "{}", line(path, &vector, duration_s))?;
                out.flush()?;
            }
            Err(error) => well = wrong(&format!("{}: {error}", path.display())),
        }
    }
    Ok(well)
}

fn wrong(what: &str) -> bool {
    complain(what);
    false
}

fn embed(model: &Model, path: &Path) -> Result<([f32; DIM], f64), Error> {
    let mut wav = Wav::new(BufReader::new(File::open(path)?))?;
    let vector = wav.embed(model)?;
    Ok((vector, wav.duration_s()))
}

fn line(path: &Path, vector: &[f32; DIM], duration_s: f64) -> String {
    let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
    let path = quoted(&path.to_string_lossy());
    format!(r#"{{"path": {path}, "embedding": [{}], "duration_s": {duration_s}}}"#, numbers.join(", "))
}

/// Returns a text as JSON writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.extend(format!("\\u{:04x}", u32::from(c)).chars()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
