//! What a client port answers besides gRPC.

mod gateway;
mod probes;
mod server;
mod tls;
