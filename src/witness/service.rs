//! The daemon's half of the wire: who may ask for which register, and the store behind a thread that may wait for its disk.

use std::sync::Arc;

use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::register::Refusal;
use super::store::{Store, StoreError, Swapped};
use crate::net::tls::ClientCertificate;
use crate::proto::duetpb::witness_server::Witness;
use crate::proto::duetpb::{ReadRequest, SwapRequest, SwapResponse, WitnessAnswer};
use crate::supervisor::fsm::Register;

/// Requests that may wait for the disk at once; what comes on top is refused, and asked again by its sender.
const WAITING_MAX: usize = 64;

/// See the module; clones share the store.
#[derive(Clone)]
pub struct WitnessService {
    store: Arc<Mutex<Store>>,
    waiting: Arc<tokio::sync::Semaphore>,
}

impl WitnessService {
    /// Over an opened store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store: Arc::new(Mutex::new(store)), waiting: Arc::new(tokio::sync::Semaphore::new(WAITING_MAX)) }
    }

    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return Err(Status::unavailable("the witness's disk is too slow for so many requests"));
        };
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&mut store.lock())
        });
        let outcome = done.await.map_err(|error| Status::internal(error.to_string()))?;
        outcome.map_err(|error| match error {
            StoreError::Name => Status::invalid_argument(error.to_string()),
            StoreError::TooMany => Status::resource_exhausted(error.to_string()),
            StoreError::Io { .. } | StoreError::Spoilt { .. } | StoreError::Locked(_) => {
                tracing::error!("{error}");
                Status::unavailable(error.to_string())
            }
        })
    }
}

/// A node's certificate is called `a.CLUSTER.duet`: it may ask for that pair's register only.
fn check_caller<T>(request: &Request<T>, cluster: &str) -> Result<(), Status> {
    let certificate = request.extensions().get::<ClientCertificate>();
    let name = certificate.and_then(|certificate| certificate.common_name.as_deref()).unwrap_or_default();
    let own = name.strip_suffix(".duet").and_then(|rest| rest.split_once('.'));
    if own.is_some_and(|(node, of)| matches!(node, "a" | "b") && of == cluster) {
        return Ok(());
    }
    tracing::warn!(certificate = name, cluster, "refused: that certificate isn't a node's of this pair");
    Err(Status::permission_denied(format!("the certificate {name:?} is not a node's of the pair {cluster:?}")))
}

#[tonic::async_trait]
impl Witness for WitnessService {
    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<WitnessAnswer>, Status> {
        check_caller(&request, &request.get_ref().cluster)?;
        let cluster = request.into_inner().cluster;
        let answer = self.with_store(move |store| store.read(&cluster)).await?;
        Ok(Response::new(answer.into()))
    }

    async fn swap(&self, request: Request<SwapRequest>) -> Result<Response<SwapResponse>, Status> {
        check_caller(&request, &request.get_ref().cluster)?;
        let SwapRequest { cluster, instance, expected, value } = request.into_inner();
        let new = value.and_then(|value| Register::try_from(value).ok());
        let new = new.ok_or_else(|| Status::invalid_argument("not a register that this version of the witness knows"))?;
        let name = cluster.clone();
        let swapped = self.with_store(move |store| store.swap(&cluster, instance, expected, new)).await?;
        let (applied, answer) = match swapped {
            Swapped::Applied(answer) => {
                tracing::info!(cluster = name, version = new.version, epoch = new.epoch, owner = ?new.owner, mode = ?new.mode, "written");
                (true, answer)
            }
            Swapped::Refused(Refusal::Differs(answer) | Refusal::NotNewer(answer)) => (false, answer),
        };
        Ok(Response::new(SwapResponse { applied, answer: Some(answer.into()) }))
    }
}
