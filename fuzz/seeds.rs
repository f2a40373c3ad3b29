//! The inputs that fuzzing starts from, made from programs of the differential tester's generator.
//!
//! libFuzzer runs a target's `init` before it reads the corpus: each target calls [`write`] there with its own way to make
//! an input of a program.

use std::fs;
use std::path::PathBuf;

use conformance::command::Command;
use conformance::generate::{Generator, Weights};

/// Names the corpus directory of the target; without it nothing is written.
const SEEDS_VARIABLE: &str = "FUZZ_SEEDS";
const PROGRAM_LENGTH: usize = 12;

/// Writes `count` inputs.
pub fn write(count: u64, input: impl Fn(&[Command]) -> Vec<u8>) {
    let Some(directory) = std::env::var_os(SEEDS_VARIABLE).map(PathBuf::from) else { return };
    fs::create_dir_all(&directory).expect("the corpus directory");
    for seed in 0..count {
        let program = Generator::new(seed, Weights::default()).program(PROGRAM_LENGTH);
        fs::write(directory.join(format!("program-{seed}")), input(&program)).expect("space for a seed");
    }
}
