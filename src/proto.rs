//! The generated wire types and services of `proto/`, one module per protobuf package.
#![allow(missing_docs, clippy::all)]

pub mod codec;
pub mod nested;

/// etcd's API.
pub mod etcdserverpb {
    pub use super::nested::{RequestOp, ResponseOp, request_op, response_op};
    tonic::include_proto!("etcdserverpb");
}
/// Keys, values and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// The lock service.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
/// The election service.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// gRPC's own health service.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
/// What Duets say to each other: replicas, the nodes of a pair and their witness.
pub mod duetpb {
    tonic::include_proto!("duetpb");
}

/// The descriptor set that gRPC reflection answers from.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd_descriptor.bin"));
