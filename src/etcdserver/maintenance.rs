//! The Maintenance service.

use std::pin::Pin;

use futures_util::stream::Stream;
use tonic::{Request, Response, Status};

use super::error::{self, Error};
use super::{EtcdServer, leader, version};
use crate::engine::shown_quota;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::downgrade_request::DowngradeAction;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeInfo, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use crate::storage::AlarmRow;
use crate::telemetry::metrics::{ETCD_CLUSTER_VERSION, ETCD_VERSION, RequestKind};

#[tonic::async_trait]
impl Maintenance for EtcdServer {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let AlarmRequest { action, member_id, alarm } = request.into_inner();
        let row = AlarmRow { member_id, alarm };
        let alarms = match AlarmAction::try_from(action) {
            Ok(AlarmAction::Get) => self.raised(alarm),
            Ok(AlarmAction::Activate) => self.activate(row).await?,
            Ok(AlarmAction::Deactivate) => self.deactivate(row).await?,
            Err(_) => Vec::new(),
        };
        let alarms = alarms.into_iter().map(on_wire).collect();
        Ok(Response::new(AlarmResponse { header: Some(self.header(self.inner.engine.revision())), alarms }))
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let engine = &self.inner.engine;
        let status = engine.status();
        let header = self.header(status.revision);
        let has_leader = leader::is_known(&engine.role().borrow());
        // The position in the log is the revision: there is no other log than that of the store's changes.
        let position = u64::try_from(status.revision).unwrap_or(0);
        let mut errors: Vec<String> = Vec::new();
        if !has_leader {
            errors.push(Error::NoLeader.text().to_owned());
        }
        errors.extend(engine.alarms().into_iter().map(|alarm| alarm_text(&on_wire(alarm))));
        Ok(Response::new(StatusResponse {
            header: Some(header),
            version: ETCD_VERSION.to_owned(),
            db_size: status.disk_bytes,
            leader: if has_leader { header.member_id } else { 0 },
            raft_index: position,
            raft_term: header.raft_term,
            raft_applied_index: position,
            errors,
            db_size_in_use: status.in_use_bytes,
            is_learner: false,
            storage_version: ETCD_CLUSTER_VERSION.to_owned(),
            db_size_quota: shown_quota(self.inner.config.quota_bytes),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    async fn defragment(&self, _request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        self.inner.engine.defragment().await.map_err(error::of_read)?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let hash = self.inner.engine.hash().await.map_err(error::of_read)?;
        Ok(Response::new(HashResponse { header: Some(self.header(hash.revision)), hash: hash.hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let hash = self.inner.engine.hash_kv(request.into_inner().revision).await.map_err(error::of_read)?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.header(hash.revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    async fn snapshot(&self, _request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("duet: Snapshot does not exist yet; back the database up with PostgreSQL's own tools"))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let engine = &self.inner.engine;
        if !leader::is_known(&engine.role().borrow()) {
            return Err(Error::NotLeader.into());
        }
        // Of one member leadership can go to itself only, and there it is.
        if request.into_inner().target_id != engine.ids().1 {
            return Err(Error::BadLeaderTransferee.into());
        }
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        let DowngradeRequest { action, version } = request.into_inner();
        match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate) => self.check_downgrade(&version).await?,
            Ok(DowngradeAction::Enable) => {
                self.check_downgrade(&version).await?;
                return Err(Status::unimplemented("duet: there is no older version of the stored data to go back to"));
            }
            // Nothing is under way; etcd notes that in its log and answers as if there had been.
            Ok(DowngradeAction::Cancel) => self.inner.engine.read_barrier().await.map_err(error::of_read)?,
            Err(_) => return Err(Status::unknown("etcdserver: unknown method")),
        }
        let version = ETCD_CLUSTER_VERSION.trim_end_matches(".0").to_owned();
        Ok(Response::new(DowngradeResponse { header: Some(self.header(self.inner.engine.revision())), version }))
    }
}

impl EtcdServer {
    /// The raised alarms of one kind, or of all.
    fn raised(&self, alarm: i32) -> Vec<AlarmRow> {
        let mut alarms = self.inner.engine.alarms();
        alarms.retain(|raised| alarm == AlarmType::None as i32 || raised.alarm == alarm);
        alarms
    }

    async fn activate(&self, row: AlarmRow) -> Result<Vec<AlarmRow>, Status> {
        if row.alarm == AlarmType::None as i32 {
            return Ok(Vec::new());
        }
        if !self.inner.engine.alarms().contains(&row) {
            let raised = self.timed(RequestKind::Alarm, self.inner.engine.alarm_activate(row)).await;
            raised.map_err(error::of_write)?;
        }
        Ok(vec![row])
    }

    async fn deactivate(&self, row: AlarmRow) -> Result<Vec<AlarmRow>, Status> {
        if !self.inner.engine.alarms().contains(&row) {
            return Ok(Vec::new());
        }
        let disarmed = self.timed(RequestKind::Alarm, self.inner.engine.alarm_deactivate(row)).await;
        disarmed.map_err(error::of_write)?;
        Ok(vec![row])
    }

    /// Only the release before the present one can be gone back to.
    async fn check_downgrade(&self, target: &str) -> Result<(), Status> {
        let target = version::parse(target).ok_or(Error::WrongDowngradeVersionFormat)?;
        self.inner.engine.read_barrier().await.map_err(error::of_read)?;
        let (major, minor) = version::parse(ETCD_CLUSTER_VERSION).expect("our own version is well formed");
        if target == (major, minor - 1) { Ok(()) } else { Err(Error::InvalidDowngradeTargetVersion.into()) }
    }
}

fn on_wire(row: AlarmRow) -> AlarmMember {
    AlarmMember { member_id: row.member_id, alarm: row.alarm }
}

/// An alarm as Status tells it: protobuf's text form.
fn alarm_text(alarm: &AlarmMember) -> String {
    let kind = AlarmType::try_from(alarm.alarm).map_or_else(|_| alarm.alarm.to_string(), |kind| kind.as_str_name().to_owned());
    format!("memberID:{} alarm:{kind}", alarm.member_id)
}
