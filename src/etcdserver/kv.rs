//! The KV service.

use tonic::{Request, Response, Status};

use super::range_stream::{self, Chunks};
use super::validate::{self, RangeStreamError};
use super::{EtcdServer, error};
use crate::mvcc;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use crate::telemetry::metrics::RequestKind;

#[tonic::async_trait]
impl Kv for EtcdServer {
    type RangeStreamStream = Chunks;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        validate::range(&request)?;
        let answer = self.timed(RequestKind::Range, self.inner.engine.range(&request)).await;
        let mut response = answer.map_err(error::of_read)?;
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Chunks>, Status> {
        let request = request.into_inner();
        validate::range_stream(&request).map_err(|error| match error {
            RangeStreamError::Range(error) => error.into(),
            RangeStreamError::CustomSort => Status::unimplemented("RangeStream does not support custom sort orders"),
            RangeStreamError::RevisionFilter => Status::unimplemented("RangeStream does not support revision filters"),
        })?;
        Ok(Response::new(range_stream::chunks(self.clone(), request)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        let cost = validate::put_cost(&request);
        self.admit(cost).await?;
        validate::put(&request)?;
        validate::size(&request, self.inner.config.max_request_bytes)?;
        self.refuse_if_alarmed(cost)?;
        let answer = self.timed(RequestKind::Put, self.inner.engine.put(request)).await;
        let mut response = answer.map_err(error::of_write)?;
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(&self, request: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        validate::delete_range(&request)?;
        validate::size(&request, self.inner.config.max_request_bytes)?;
        self.refuse_if_alarmed(0)?;
        let answer = self.timed(RequestKind::DeleteRange, self.inner.engine.delete_range(request)).await;
        let mut response = answer.map_err(error::of_write)?;
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        let cost = validate::txn_cost(&request);
        self.admit(cost).await?;
        validate::txn(&request, self.inner.config.max_txn_ops)?;
        let answer = if mvcc::is_read_only(&request) {
            // Not logged by etcd, so neither the size limit nor alarms apply.
            self.timed(RequestKind::ReadonlyTxn, self.inner.engine.txn(request)).await.map_err(error::of_read)
        } else {
            validate::size(&request, self.inner.config.max_request_bytes)?;
            self.refuse_if_alarmed(cost)?;
            self.timed(RequestKind::Txn, self.inner.engine.txn(request)).await.map_err(error::of_write)
        };
        let mut response = answer?;
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let CompactionRequest { revision, physical } = request.into_inner();
        self.refuse_if_alarmed(0)?;
        let answer = self.timed(RequestKind::Compaction, self.inner.engine.compact(revision, physical)).await;
        // "Stopped" may come after the compaction took effect, while waiting for the rows to go: so it isn't called unapplied.
        let revision = answer.map_err(error::of_read)?;
        let header: Option<ResponseHeader> = Some(self.header(revision));
        Ok(Response::new(CompactionResponse { header }))
    }
}
