//! Plays a script to a server and writes down what it answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::Streaming;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::figures::Figures;
use crate::normalise::{Answer, Normaliser};
use crate::script::{Request, Step, Stream, b};
use crate::server::Server;
use crate::transcript::{Entry, TIMEOUT, Transcript, failed};
use crate::watch::WatchStream;
use duet::proto::etcdserverpb::watch_request::RequestUnion;
use duet::proto::etcdserverpb::*;

/// Metadata of a request.
pub type Metadata = [(&'static str, Vec<u8>)];

/// How long an answer may take.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// One unary call.
pub async fn call<Q, A>(channel: &Channel, path: &'static str, request: Q, metadata: &Metadata) -> Result<A, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = client(channel).await?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    let response = grpc.unary(with_metadata(request, metadata), path, codec).await?;
    Ok(response.into_inner())
}

async fn client(channel: &Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|error| Status::unavailable(format!("connect: {error}")))?;
    Ok(grpc)
}

fn with_metadata<T>(message: T, metadata: &Metadata) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (key, value) in metadata {
        request.metadata_mut().append(
            MetadataKey::from_static(key),
            MetadataValue::try_from(value.as_slice()).expect("a script's metadata is valid"),
        );
    }
    request
}

/// A bidirectional stream: what is sent into the sender goes out, what comes back or ends the stream arrives at the receiver.
pub fn bidirectional<Q, A>(
    channel: &Channel,
    path: &'static str,
    metadata: &Metadata,
) -> (mpsc::UnboundedSender<Q>, mpsc::UnboundedReceiver<Result<A, Status>>)
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let (requests, outgoing) = mpsc::unbounded_channel();
    let (incoming, responses) = mpsc::unbounded_channel();
    let channel = channel.clone();
    let request = with_metadata(UnboundedReceiverStream::new(outgoing), metadata);
    // A server that has nothing to say yet sends no headers either: opening must not wait for them.
    tokio::spawn(async move {
        let open = async {
            let mut grpc = client(&channel).await?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.streaming(request, PathAndQuery::from_static(path), codec).await
        };
        match open.await {
            Ok(response) => forward(response.into_inner(), incoming).await,
            Err(status) => drop(incoming.send(Err(status))),
        }
    });
    (requests, responses)
}

async fn forward<A>(mut from: Streaming<A>, to: mpsc::UnboundedSender<Result<A, Status>>) {
    loop {
        tokio::select! {
            message = from.next() => {
                let Some(message) = message else { return };
                if to.send(message).is_err() {
                    return;
                }
            }
            () = to.closed() => return,
        }
    }
}

/// Plays scripts to one server.
pub struct Player<'a> {
    server: &'a mut Server,
    channel: Channel,
    normaliser: Normaliser,
    streams: BTreeMap<Stream, WatchStream>,
    transcript: Transcript,
    /// When the script began, or after its last restart.
    before: Figures,
    /// What the reference answered, which tells how much to wait for.
    hint: Option<&'a Transcript>,
}

/// Plays `steps` to `server`, settles every watch stream at the end, and asks what the server has counted.
///
/// `exact` is for a store that is fresh; any other one is emptied first. `hint` is the reference's transcript of the same steps.
pub async fn play(server: &mut Server, steps: &[Step], exact: bool, hint: Option<&Transcript>) -> Result<Transcript> {
    let channel = server.channel();
    if !exact {
        empty(&channel).await.context("empty the store")?;
    }
    let header = current(&channel).await?;
    let before = Figures::scrape(server.port()).await?;
    let mut player = Player {
        server,
        channel,
        normaliser: Normaliser::new(header.revision - 1, exact, header.member_id),
        streams: BTreeMap::new(),
        transcript: Transcript::default(),
        before,
        hint,
    };
    player.steps(steps).await?;
    let open: Vec<Stream> = player.streams.keys().copied().collect();
    for stream in open {
        player.step(&Step::Settle(stream)).await?;
    }
    player.step(&Step::Figures).await?;
    Ok(player.transcript)
}

async fn current(channel: &Channel) -> Result<ResponseHeader> {
    let probe = RangeRequest { key: b([0]), count_only: true, ..Default::default() };
    let response: RangeResponse = call(channel, "/etcdserverpb.KV/Range", probe, &[]).await?;
    response.header.ok_or_else(|| anyhow!("Range has no header"))
}

/// Deletes all keys, leases and alarms, and leaves a revision that no script's leftovers can show through.
async fn empty(channel: &Channel) -> Result<()> {
    let get = AlarmRequest::default();
    let alarms: AlarmResponse = call(channel, "/etcdserverpb.Maintenance/Alarm", get, &[]).await?;
    for alarm in alarms.alarms {
        let request = AlarmRequest {
            action: alarm_request::AlarmAction::Deactivate as i32,
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let path = "/etcdserverpb.Maintenance/Alarm";
        call::<_, AlarmResponse>(channel, path, request, &[]).await?;
    }
    let leases: LeaseLeasesResponse = call(channel, "/etcdserverpb.Lease/LeaseLeases", LeaseLeasesRequest {}, &[]).await?;
    for lease in leases.leases {
        let request = LeaseRevokeRequest { id: lease.id };
        let path = "/etcdserverpb.Lease/LeaseRevoke";
        match call::<_, LeaseRevokeResponse>(channel, path, request, &[]).await {
            Err(status) if status.code() != Code::NotFound => return Err(status.into()),
            _ => {}
        }
    }
    let put = PutRequest { key: b("\u{10ffff} before the script"), ..Default::default() };
    call::<_, PutResponse>(channel, "/etcdserverpb.KV/Put", put, &[]).await?;
    let delete = DeleteRangeRequest { key: b([0]), range_end: b([0]), ..Default::default() };
    call::<_, DeleteRangeResponse>(channel, "/etcdserverpb.KV/DeleteRange", delete, &[]).await?;
    let put = PutRequest { key: b("the last one before the script"), ..Default::default() };
    call::<_, PutResponse>(channel, "/etcdserverpb.KV/Put", put, &[]).await?;
    let delete = DeleteRangeRequest { key: b("the last one before the script"), ..Default::default() };
    call::<_, DeleteRangeResponse>(channel, "/etcdserverpb.KV/DeleteRange", delete, &[]).await?;
    Ok(())
}

impl Player<'_> {
    async fn steps(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            match step {
                Step::Group(steps) => Box::pin(self.steps(steps)).await?,
                step => self.step(step).await?,
            }
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        let number = self.transcript.0.len();
        let hint = self.hint.and_then(|hint| hint.0.get(number)).map(|entry| &entry.counts);
        let mut counts = BTreeMap::new();
        let answer = match step {
            Step::Call(request) => self.call(request, &[]).await,
            Step::CallWith(metadata, request) => self.call(request, metadata).await,
            Step::Open(stream, metadata) => {
                let stream_of = WatchStream::open(&self.channel, metadata);
                self.streams.insert(*stream, stream_of);
                String::new()
            }
            Step::Send(stream, request) => self.send(*stream, request.clone()).await,
            Step::Take(stream, n) => match self.streams.get_mut(stream) {
                Some(stream) => stream.take(*n, &mut self.normaliser).await,
                None => not_open(),
            },
            Step::Settle(stream) => match self.streams.get_mut(stream) {
                Some(stream) => stream.settle(&self.channel, &mut self.normaliser, hint, &mut counts).await,
                None => not_open(),
            },
            Step::CloseSend(stream) => match self.streams.get_mut(stream) {
                Some(stream) => stream.close_send(),
                None => not_open(),
            },
            Step::End(stream) => match self.streams.remove(stream) {
                Some(stream) => stream.end().await,
                None => not_open(),
            },
            Step::Drop(stream) => {
                self.streams.remove(stream);
                String::new()
            }
            Step::Restart => {
                self.streams.clear();
                self.server.restart().await?;
                self.before = Figures::scrape(self.server.port()).await?;
                String::new()
            }
            Step::Figures => Figures::scrape(self.server.port()).await?.since(&self.before),
            Step::Group(_) => unreachable!("groups are taken apart before"),
        };
        self.transcript.0.push(Entry { step: step.clone(), answer, counts });
        Ok(())
    }

    async fn send(&mut self, stream: Stream, mut request: RequestUnion) -> String {
        self.normaliser.watch_request(&mut request);
        match self.streams.get_mut(&stream) {
            Some(stream) => stream.send(request).await,
            None => not_open(),
        }
    }

    async fn call(&mut self, request: &Request, metadata: &Metadata) -> String {
        let mut request = request.clone();
        self.normaliser.request(&mut request);
        match timeout(ANSWER_DEADLINE, self.dispatch(request, metadata)).await {
            Ok(answer) => answer,
            Err(_) => TIMEOUT.to_owned(),
        }
    }

    async fn unary<Q, A>(&mut self, path: &'static str, request: Q, metadata: &Metadata) -> String
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Answer + Send + Sync + 'static,
    {
        match call::<Q, A>(&self.channel, path, request, metadata).await {
            Ok(mut answer) => {
                answer.normalise(&mut self.normaliser);
                format!("{answer:?}")
            }
            Err(status) => failed(&status),
        }
    }

    async fn dispatch(&mut self, request: Request, m: &Metadata) -> String {
        macro_rules! unary {
            ($service:ident / $method:ident, $request:expr, $answer:ty) => {
                self.unary::<_, $answer>(concat!("/etcdserverpb.", stringify!($service), "/", stringify!($method)), $request, m)
                    .await
            };
        }
        match request {
            Request::Range(r) => unary!(KV / Range, r, RangeResponse),
            Request::RangeStream(r) => self.range_stream(r, m).await,
            Request::Put(r) => unary!(KV / Put, r, PutResponse),
            Request::DeleteRange(r) => unary!(KV / DeleteRange, r, DeleteRangeResponse),
            Request::Txn(r) => unary!(KV / Txn, r, TxnResponse),
            Request::Compact(r) => unary!(KV / Compact, r, CompactionResponse),
            Request::LeaseGrant(r) => self.lease_grant(r, m).await,
            Request::LeaseRevoke(r) => unary!(Lease / LeaseRevoke, r, LeaseRevokeResponse),
            Request::LeaseTimeToLive(r) => {
                unary!(Lease / LeaseTimeToLive, r, LeaseTimeToLiveResponse)
            }
            Request::LeaseLeases(r) => unary!(Lease / LeaseLeases, r, LeaseLeasesResponse),
            Request::LeaseKeepAlive(ids) => self.lease_keep_alive(ids, m).await,
            Request::MemberAdd(r) => unary!(Cluster / MemberAdd, r, MemberAddResponse),
            Request::MemberRemove(r) => unary!(Cluster / MemberRemove, r, MemberRemoveResponse),
            Request::MemberUpdate(r) => unary!(Cluster / MemberUpdate, r, MemberUpdateResponse),
            Request::MemberList(r) => unary!(Cluster / MemberList, r, MemberListResponse),
            Request::MemberPromote(r) => {
                unary!(Cluster / MemberPromote, r, MemberPromoteResponse)
            }
            Request::Alarm(r) => unary!(Maintenance / Alarm, r, AlarmResponse),
            Request::Status(r) => unary!(Maintenance / Status, r, StatusResponse),
            Request::Defragment(r) => unary!(Maintenance / Defragment, r, DefragmentResponse),
            Request::Hash(r) => unary!(Maintenance / Hash, r, HashResponse),
            Request::HashKv(r) => unary!(Maintenance / HashKV, r, HashKvResponse),
            Request::MoveLeader(r) => unary!(Maintenance / MoveLeader, r, MoveLeaderResponse),
            Request::Downgrade(r) => unary!(Maintenance / Downgrade, r, DowngradeResponse),
            Request::Raw(path, body) => self.raw(path, body, m).await,
        }
    }

    async fn range_stream(&mut self, request: RangeRequest, metadata: &Metadata) -> String {
        let mut answer = String::new();
        let stream = async {
            let mut grpc = client(&self.channel).await?;
            let codec = ProstCodec::<RangeRequest, RangeStreamResponse>::default();
            let path = PathAndQuery::from_static("/etcdserverpb.KV/RangeStream");
            let request = with_metadata(request, metadata);
            grpc.server_streaming(request, path, codec).await
        };
        let mut stream = match stream.await {
            Ok(response) => response.into_inner(),
            Err(status) => return failed(&status),
        };
        loop {
            match stream.message().await {
                Ok(Some(mut chunk)) => {
                    chunk.normalise(&mut self.normaliser);
                    let _ = writeln!(answer, "{chunk:?}");
                }
                Ok(None) => return answer + "end of stream",
                Err(status) => return answer + &failed(&status),
            }
        }
    }

    async fn lease_grant(&mut self, request: LeaseGrantRequest, metadata: &Metadata) -> String {
        let chosen = request.id == 0;
        let path = "/etcdserverpb.Lease/LeaseGrant";
        match call::<_, LeaseGrantResponse>(&self.channel, path, request, metadata).await {
            Ok(mut answer) => {
                if chosen {
                    self.normaliser.learn_lease(answer.id);
                }
                answer.normalise(&mut self.normaliser);
                format!("{answer:?}")
            }
            Err(status) => failed(&status),
        }
    }

    async fn lease_keep_alive(&mut self, ids: Vec<i64>, metadata: &Metadata) -> String {
        let path = "/etcdserverpb.Lease/LeaseKeepAlive";
        let (requests, mut responses) =
            bidirectional::<LeaseKeepAliveRequest, LeaseKeepAliveResponse>(&self.channel, path, metadata);
        let mut answer = String::new();
        for id in ids {
            let _ = requests.send(LeaseKeepAliveRequest { id });
            match responses.recv().await {
                Some(Ok(mut response)) => {
                    response.normalise(&mut self.normaliser);
                    let _ = writeln!(answer, "{response:?}");
                }
                Some(Err(status)) => return answer + &failed(&status),
                None => return answer + "end of stream, too early",
            }
        }
        drop(requests);
        match responses.recv().await {
            None => answer + "end of stream",
            Some(Err(status)) => answer + &failed(&status),
            Some(Ok(response)) => format!("{answer}unasked for: {response:?}"),
        }
    }

    async fn raw(&mut self, path: &'static str, body: Vec<u8>, metadata: &Metadata) -> String {
        let result = async {
            let mut grpc = client(&self.channel).await?;
            let request = with_metadata(body, metadata);
            let path = PathAndQuery::from_static(path);
            grpc.unary(request, path, crate::raw::RawCodec).await
        };
        match result.await {
            Ok(_) => "OK".to_owned(),
            Err(status) => failed(&status),
        }
    }
}

fn not_open() -> String {
    "the stream isn't open".to_owned()
}
