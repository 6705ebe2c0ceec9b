//! Compiles `proto/` into client and server code, without protoc.
//!
//! Leaves two things in `OUT_DIR`: one Rust file per protobuf package, and `etcd_descriptor.bin`, the descriptor set that gRPC reflection
//! answers from.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use protox::prost::Message;

const PROTOS: [&str; 11] = [
    "authpb/auth.proto",
    "etcdserverpb/auth.proto",
    "etcdserverpb/cluster.proto",
    "etcdserverpb/header.proto",
    "etcdserverpb/kv.proto",
    "etcdserverpb/lease.proto",
    "etcdserverpb/maintenance.proto",
    "etcdserverpb/watch.proto",
    "grpc/health/v1/health.proto",
    "v3electionpb/v3election.proto",
    "v3lockpb/v3lock.proto",
];

/// What Duets say to each other, replicas, nodes of a pair and their witness: no part of etcd's API, and so not in the reflection's
/// descriptors.
const DUET_PROTOS: [&str; 5] =
    ["duetpb/admin.proto", "duetpb/peer.proto", "duetpb/replica.proto", "duetpb/replication.proto", "duetpb/witness.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("etcd_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Keys and values stay in the buffer that the request arrived in.
        .bytes(".")
        // Transactions nest deeper than prost decodes: src/proto/nested.rs.
        .extern_path(".etcdserverpb.RequestOp", "crate::proto::nested::RequestOp")
        .extern_path(".etcdserverpb.ResponseOp", "crate::proto::nested::ResponseOp")
        .codec_path("crate::proto::codec::SizedCodec")
        .compile_fds(descriptors)?;
    tonic_prost_build::configure().bytes(".").compile_fds(protox::compile(DUET_PROTOS, ["proto"])?)?;
    Ok(())
}
