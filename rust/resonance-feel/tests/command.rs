//! The command: what it prints, and how it ends.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{made_up, sound, wav, wav_of};
use resonance_feel::Model;

/// Makes an empty folder with weights and a song.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("weights"), made_up()).unwrap();
    fs::write(folder.join("a \"b\".wav"), wav_of(&sound("noise-10s"))).unwrap();
    folder
}

fn run(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_resonance-feel")).current_dir(folder).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_line_for_each_song() {
    let folder = folder("lines");
    fs::write(folder.join("empty.wav"), wav(1, 16, 2, 44_100, &[])).unwrap();
    let done = run(&folder, &["a \"b\".wav", "empty.wav", "--weights", "weights"]);
    let out = text(&done.stdout);
    assert!(done.status.success() && done.stderr.is_empty(), "{}", text(&done.stderr));
    let lines: Vec<&str> = out.lines().collect();
    let model = Model::from_bytes(&made_up()).unwrap();
    let numbers = model.embed(&sound("noise-10s")).map(|v| v.to_string()).join(", ");
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with(r#"{"path": "a \"b\".wav", "embedding": ["#), "{}", lines[0]);
    assert!(lines[0].ends_with(r#"], "duration_s": 10}"#), "{}", lines[0]);
    assert_eq!(lines[0].matches(',').count(), numbers.matches(',').count() + 2);
    assert!(lines[1].ends_with(r#"], "duration_s": 0}"#), "{}", lines[1]);
    let digest = run(&folder, &["--weights", "weights", "--digest"]);
    assert_eq!(text(&digest.stdout).trim(), model.digest());
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let folder = folder("wrong");
    fs::write(folder.join("no.wav"), "no sound").unwrap();
    fs::write(folder.join("slow.wav"), wav(1, 8, 1, 10, &[128; 50])).unwrap();
    for (words, says) in [
        (vec![], "which files"),
        (vec!["--weights"], "needs a path"),
        (vec!["--what"], "no option"),
        (vec!["none.wav", "--weights", "weights"], "none.wav"),
        (vec![".", "--weights", "weights"], "."),
        (vec!["no.wav", "--weights", "weights"], "not a WAV file"),
        (vec!["slow.wav", "--weights", "weights"], "a rate of 10 Hz"),
        (vec!["no.wav", "--weights", "no.wav"], "header is longer"),
        (vec!["no.wav", "--weights", "gone"], "gone"),
        (vec!["no.wav", "--weights", "."], "."),
        (vec!["--weights", "weights", "--", "--help"], "--help"),
    ] {
        let done = run(&folder, &words);
        let line = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{words:?}");
        assert!(line.contains(says) && line.trim_end().lines().count() == 1, "{words:?}: {line}");
    }
    // the others are done
    let done = run(&folder, &["no.wav", "a \"b\".wav", "--weights", "weights"]);
    assert_eq!((done.status.code(), text(&done.stdout).lines().count()), (Some(2), 1));
}

#[test]
fn help_and_version() {
    let folder = folder("help");
    assert!(text(&run(&folder, &["--help"]).stdout).starts_with("usage: resonance-feel"));
    assert!(text(&run(&folder, &["--version"]).stdout).starts_with(env!("CARGO_PKG_VERSION")));
}
