//! Compiles the wire contract without a system protoc: protox parses, tonic-prost-build generates.

use std::error::Error;

const FILES: [&str; 5] = [
    "proto/mvcc.proto",
    "proto/auth.proto",
    "proto/rpc.proto",
    "proto/v3lock.proto",
    "proto/v3election.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // `Bytes` for every bytes field: a decoded request shares its buffer until a value is stored, and a stored value
    // is shared by every reply and event that carries it.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
