//! Compiles the wire contract without a system protoc: protox parses, tonic-prost-build generates.

use prost::Message;
use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 5] = [
    "proto/mvcc.proto",
    "proto/auth.proto",
    "proto/rpc.proto",
    "proto/v3lock.proto",
    "proto/v3election.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut descriptors = protox::compile(FILES, ["proto"])?;
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `Bytes` for every bytes field: a decoded request shares its buffer until a value is stored, and a stored value
    // is shared by every reply and event that carries it.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
