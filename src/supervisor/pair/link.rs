//! The heartbeats' way to the peer and back: datagrams, so that a lost one delays no other, under a key that each side gives the other
//! over mutual TLS on the peer's gRPC port.
//!
//! The sender makes a key, *introduces* it ([`introduce`]) and keeps that call open: when the receiver's process ends, the call ends with
//! it, and the next process is given a new key at once. Whatever else happens to the call, datagrams go on under the key that there is.
//!
//! It deliberately judges nothing: how long a silence may last is the state machine's business.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use tokio::net::{UdpSocket, lookup_host};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::datagram::{DATAGRAM_BYTES_MAX, KEY_BYTES, Opener, Sealer, key_of};
use super::record::letter;
use crate::net::tls::ClientCertificate;
use crate::proto::duetpb::peer_client::PeerClient;
use crate::proto::duetpb::peer_server::Peer;
use crate::proto::duetpb::{IntroduceRequest, IntroduceResponse};
use crate::supervisor::fsm::{Heartbeat, NodeId};

/// Keys that are remembered: those of a peer that is being started again and again.
const KEYS_MAX: usize = 4;
/// How long an introduction may take: four times to the peer and back.
const INTRODUCE_DEADLINE: Duration = Duration::from_secs(3);
/// Between two introductions that failed.
const INTRODUCE_PAUSE: Duration = Duration::from_millis(20);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a link can't be made.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for the peer's heartbeats on {address} (UDP): {cause}")]
pub struct LinkError {
    address: SocketAddr,
    cause: std::io::Error,
}

/// The socket and the keys; clones share them.
#[derive(Clone)]
pub struct Link {
    socket: Arc<UdpSocket>,
    /// The peer's host and port; resolved again with each introduction.
    peer: Arc<(String, u16)>,
    to: Arc<Mutex<Option<(SocketAddr, Sealer)>>>,
    from: Arc<Mutex<Vec<Opener>>>,
    anew: Arc<Notify>,
    /// Where clients reach the peer, as it said last.
    client_urls: Arc<watch::Sender<Vec<String>>>,
}

impl Link {
    /// Listens on `address` (UDP) and will send to `peer` once it has been introduced.
    ///
    /// # Errors
    /// The address can't be bound.
    pub async fn bind(address: SocketAddr, peer: (String, u16)) -> Result<Self, LinkError> {
        let socket = UdpSocket::bind(address).await.map_err(|cause| LinkError { address, cause })?;
        Ok(Self {
            socket: Arc::new(socket),
            peer: Arc::new(peer),
            to: Arc::default(),
            from: Arc::default(),
            anew: Arc::default(),
            client_urls: Arc::default(),
        })
    }

    /// Sends, if the peer was ever introduced. A heartbeat that can't be sent is a lost one: there will be another soon.
    pub fn send(&self, heartbeat: &Heartbeat) {
        let sealed = self.to.lock().as_mut().map(|(address, sealer)| (*address, sealer.seal(heartbeat)));
        if let Some((address, datagram)) = sealed
            && let Err(error) = self.socket.try_send_to(&datagram, address)
        {
            tracing::debug!(%error, %address, "a heartbeat was not sent");
        }
    }

    /// The next heartbeat of the peer's; anything else that arrives is passed over.
    pub async fn receive(&self) -> Heartbeat {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((length, _)) => {
                    if let Some(heartbeat) = self.open(&buffer[..length]) {
                        return heartbeat;
                    }
                }
                // The peer's port is closed at the moment: an ICMP message of an earlier send.
                Err(error) => {
                    tracing::debug!(%error, "no heartbeat");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Where clients reach the peer; nothing before it has introduced itself.
    #[must_use]
    pub fn client_urls(&self) -> watch::Receiver<Vec<String>> {
        self.client_urls.subscribe()
    }

    /// Resolves when the peer has got a key that it hasn't heard anything under.
    pub async fn introduced_anew(&self) {
        self.anew.notified().await;
    }

    fn open(&self, datagram: &[u8]) -> Option<Heartbeat> {
        let id = key_of(datagram)?;
        let mut openers = self.from.lock();
        let at = openers.iter().position(|opener| opener.id == id)?;
        let heartbeat = openers[at].open(datagram)?;
        // The one in use is the last to be forgotten, however many introductions come to nothing meanwhile.
        openers[at..].rotate_left(1);
        Some(heartbeat)
    }

    fn learn(&self, opener: Opener) {
        let mut openers = self.from.lock();
        openers.retain(|known| known.id != opener.id);
        openers.push(opener);
        let surplus = openers.len().saturating_sub(KEYS_MAX);
        openers.drain(..surplus);
    }

    /// Introduces this node, whose clients reach it at `client_urls`, to the peer, and again whenever that ends, until `stop`.
    pub async fn introduce(self, channel: impl Fn() -> Channel, client_urls: Vec<String>, stop: CancellationToken) {
        let mut told = false;
        loop {
            let introduced = tokio::select! {
                () = stop.cancelled() => return,
                introduced = self.introduced(channel(), client_urls.clone()) => introduced,
            };
            match introduced {
                Ok(()) => told = false,
                Err(why) if !told => {
                    tracing::info!(peer = self.peer_name(), why, "the peer can't be reached; trying on");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(INTRODUCE_PAUSE) => {}
            }
        }
    }

    fn peer_name(&self) -> String {
        format!("{}:{}", self.peer.0, self.peer.1)
    }

    /// `Ok` when the peer had been introduced, and the call has ended.
    async fn introduced(&self, channel: Channel, client_urls: Vec<String>) -> Result<(), String> {
        let begin = async {
            let address = lookup_host((self.peer.0.as_str(), self.peer.1)).await.map_err(|error| error.to_string())?.next();
            let address = address.ok_or("its name has no address")?;
            let mut random = [0; KEY_BYTES + 8];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| "there are no random bytes")?;
            let (key, id) = random.split_first_chunk::<KEY_BYTES>().expect("the length is above");
            let key_id = u64::from_be_bytes(id.try_into().expect("eight bytes are left"));
            let request = IntroduceRequest { key_id, key: key.to_vec().into(), version: VERSION.to_owned(), client_urls };
            let answer = PeerClient::new(channel).introduce(request).await.map_err(|status| status.message().to_owned())?;
            let mut stream = answer.into_inner();
            let first = stream.message().await.map_err(|status| status.message().to_owned())?.ok_or("it hung up")?;
            *self.to.lock() = Some((address, Sealer::new(key_id, key)));
            self.anew.notify_one();
            Ok::<_, String>((stream, first))
        };
        let (mut stream, first) = timeout(INTRODUCE_DEADLINE, begin).await.map_err(|_| "no answer in time")??;
        tracing::info!(peer = self.peer_name(), version = first.version, "introduced to the peer");
        while let Ok(Some(_)) = stream.message().await {}
        Ok(())
    }
}

/// The receiver's half of an introduction, as a gRPC service.
pub struct PeerService {
    link: Link,
    /// The common name of the peer's certificate.
    peer_name: String,
    stop: CancellationToken,
}

/// What the certificate of `node` in the pair `cluster` is called.
#[must_use]
pub fn certificate_name(node: NodeId, cluster: &str) -> String {
    format!("{}.{cluster}.duet", letter(node).to_ascii_lowercase())
}

impl PeerService {
    /// Takes the keys of the node whose certificate is called `peer_name`.
    #[must_use]
    pub fn new(link: Link, peer_name: String, stop: CancellationToken) -> Self {
        Self { link, peer_name, stop }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type IntroduceStream = Pin<Box<dyn Stream<Item = Result<IntroduceResponse, Status>> + Send>>;

    async fn introduce(&self, request: Request<IntroduceRequest>) -> Result<Response<Self::IntroduceStream>, Status> {
        let caller = request.extensions().get::<ClientCertificate>().and_then(|certificate| certificate.common_name.clone());
        if caller.as_ref() != Some(&self.peer_name) {
            let caller = caller.unwrap_or_default();
            tracing::warn!(caller, expected = self.peer_name, "refused an introduction: that certificate isn't the peer's");
            return Err(Status::permission_denied(format!("{caller:?} is not this node's peer, {:?}", self.peer_name)));
        }
        let request = request.into_inner();
        let key = request.key.as_ref().try_into().map_err(|_| Status::invalid_argument("a key has 32 bytes"))?;
        self.link.learn(Opener::new(request.key_id, key));
        self.link.client_urls.send_replace(request.client_urls);
        tracing::info!(peer = self.peer_name, version = request.version, "the peer has introduced itself");
        let first = futures_util::stream::once(std::future::ready(Ok(IntroduceResponse { version: VERSION.to_owned() })));
        let stop = self.stop.clone();
        // Nothing more is said: the call's end is the message.
        let until_stopped = futures_util::stream::once(async move {
            stop.cancelled().await;
            Err(Status::unavailable("stopping"))
        });
        Ok(Response::new(Box::pin(futures_util::StreamExt::chain(first, until_stopped))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_key_in_use_is_kept_however_many_introductions_come_to_nothing() {
        let link = Link::bind(([127, 0, 0, 1], 0).into(), ("127.0.0.1".to_owned(), 1)).await.unwrap();
        let key = |id: u64| [u8::try_from(id).unwrap(); KEY_BYTES];
        let mut sealers: Vec<Sealer> = (0..10).map(|id| Sealer::new(id, &key(id))).collect();
        let heartbeat = super::super::datagram::tests::heartbeat();
        link.learn(Opener::new(0, &key(0)));
        for id in 1..10 {
            assert!(link.open(&sealers[0].seal(&heartbeat)).is_some(), "after {} others", id - 1);
            link.learn(Opener::new(id, &key(id)));
        }
        assert!(link.open(&sealers[9].seal(&heartbeat)).is_some(), "the newest");
        assert!(link.open(&sealers[2].seal(&heartbeat)).is_none(), "one that was never used");
    }
}
