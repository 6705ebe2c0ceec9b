//! What is checked before a service sees a request: a leader, message sizes, versions.

use duet::proto::etcdserverpb as pb;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::support::{Server, assert_refused, b, key};

#[tokio::test]
async fn a_message_over_2_mib_is_refused_in_grpcs_own_words() {
    let server = Server::start().await;
    let put = pb::PutRequest { key: b("a"), value: b(&"x".repeat(2 << 20)), ..Default::default() };
    let text = "grpc: received message larger than max (2097160 vs. 2097152)";
    assert_refused(server.kv().put(put).await, Code::ResourceExhausted, text);
    assert!(server.range(key("a")).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn a_message_over_2_mib_ends_a_watch_stream_in_the_same_way() {
    let server = Server::start().await;
    let create = pb::WatchCreateRequest { key: b(&"x".repeat(2 << 20)), ..Default::default() };
    let union = pb::watch_request::RequestUnion::CreateRequest(create);
    let requests = tokio_stream::iter([pb::WatchRequest { request_union: Some(union) }]);
    let answer = match server.watch().watch(requests).await {
        Ok(responses) => responses.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    assert_eq!(answer.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_client_that_requires_a_leader_is_served_when_there_is_one() {
    let server = Server::start().await;
    let mut request = Request::new(key("a"));
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    assert!(server.kv().range(request).await.is_ok());
}

#[tokio::test]
async fn requests_are_counted_under_etcds_names() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let text = server.metrics.render();
    let counted =
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#;
    assert!(text.contains(counted), "{text}");
    assert!(text.contains(r#"etcd_server_request_duration_seconds_count{success="true",type="Put"} 1"#), "{text}");
}

#[tokio::test]
async fn health_is_serving_until_the_server_stops() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel());
    let mut updates = health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
    server.stop.cancel();
    assert_eq!(updates.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
}

#[tokio::test]
async fn the_health_of_an_unknown_service_is_not_known() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel());
    let request = tonic_health::pb::HealthCheckRequest { service: "poetry".into() };
    assert_refused(health.check(request.clone()).await, Code::NotFound, "unknown service");
    let mut updates = health.watch(request).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap().unwrap().status, ServingStatus::ServiceUnknown as i32);
}

#[tokio::test]
async fn the_list_of_healths_has_the_whole_server_as_its_only_service() {
    use duet::proto::health::health_check_response::ServingStatus;
    use duet::proto::health::health_client::HealthClient;
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel());
    for (stopped, expected) in [(false, ServingStatus::Serving), (true, ServingStatus::NotServing)] {
        if stopped {
            server.stop.cancel();
        }
        let listed = health.list(duet::proto::health::HealthListRequest {}).await.unwrap().into_inner().statuses;
        assert_eq!(
            listed.into_iter().map(|(name, state)| (name, state.status())).collect::<Vec<_>>(),
            [(String::new(), expected)]
        );
    }
    let text = server.metrics.render();
    let counted = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="List",grpc_service="grpc.health.v1.Health",grpc_type="unary"} 2"#;
    assert!(text.contains(counted), "{text}");
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_grpcs_own_words() {
    let server = Server::start().await;
    let ask = async |path: &'static str, body: &'static [u8]| {
        let mut client = tonic::client::Grpc::new(server.channel());
        client.ready().await.expect("a connection");
        let path = http::uri::PathAndQuery::from_static(path);
        let request = Request::new(Raw(body));
        client.unary::<_, Raw, _>(request, path, RawCodec).await
    };
    let text = "unknown method Rearrange for service etcdserverpb.KV";
    assert_refused(ask("/etcdserverpb.KV/Rearrange", b"").await, Code::Unimplemented, text);
    let text = "unknown service etcdserverpb.Poetry";
    assert_refused(ask("/etcdserverpb.Poetry/Write", b"").await, Code::Unimplemented, text);
    let text = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data";
    assert_refused(ask("/etcdserverpb.KV/Range", &[255, 255, 255]).await, Code::Internal, text);
}

/// A message that is sent as it is.
#[derive(Debug)]
struct Raw(&'static [u8]);

struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Raw;
    type Decode = Raw;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Raw;
    type Error = Status;

    fn encode(&mut self, item: Raw, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, item.0);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = Raw;
    type Error = Status;

    fn decode(&mut self, _buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Raw>, Status> {
        Ok(Some(Raw(b"")))
    }
}

/// What reflection lists, in the old version of its protocol or in the new one, which have the same messages.
macro_rules! listed {
    ($server:expr, $version:ident) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let ask = async |message_request| {
            let request = ServerReflectionRequest { message_request: Some(message_request), ..Default::default() };
            let mut client = ServerReflectionClient::new($server.channel());
            let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
            answers.message().await.unwrap().unwrap().message_response.unwrap()
        };
        let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
            panic!("a list of services")
        };
        let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        for name in &names {
            let described = ask(MessageRequest::FileContainingSymbol(name.clone())).await;
            assert!(matches!(described, MessageResponse::FileDescriptorResponse(_)), "{name}");
        }
        names
    }};
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_nothing_else() {
    let server = Server::start().await;
    let served = [
        "etcdserverpb.Cluster",
        "etcdserverpb.KV",
        "etcdserverpb.Lease",
        "etcdserverpb.Maintenance",
        "etcdserverpb.Watch",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    assert_eq!(listed!(server, v1), served);
    assert_eq!(listed!(server, v1alpha), served);
}
