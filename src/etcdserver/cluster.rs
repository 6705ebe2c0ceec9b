//! The Cluster service: to its clients a store is one member, with the client URLs of both nodes if it is a pair's: a client that takes its
//! endpoints from here (clientv3's `Sync`) must not lose one.
//!
//! Members aren't added or removed over the API: Duet's replicas join through their configuration. Such requests are checked as etcd
//! checks them and then refused with an explanation, so that no script takes a silent success for a new member.

use tonic::{Request, Response, Status};

use super::error::{self, Error};
use super::{EtcdServer, cluster_urls};
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};

#[tonic::async_trait]
impl Cluster for EtcdServer {
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        if !cluster_urls::are_valid(&request.into_inner().peer_ur_ls) {
            return Err(Error::MemberBadURLs.into());
        }
        Err(Status::unimplemented(
            "duet: members are not added over the API; to its clients the store is one member. Start another replica on the same \
             database instead (duet serve)",
        ))
    }

    async fn member_remove(&self, request: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        self.require_own_id(request.into_inner().id)?;
        // Nothing would be left. On the wire this error has the code Unknown, because etcd hands out the client's form of it.
        Err(Status::unknown(Error::MemberNotEnoughStarted.text()))
    }

    async fn member_update(&self, request: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        self.require_own_id(request.into_inner().id)?;
        Err(Status::unimplemented("duet: peer URLs mean nothing here: there are no peers that connect to them"))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.inner.engine.read_barrier().await.map_err(error::of_read)?;
        }
        Ok(Response::new(MemberListResponse { header: Some(self.header(0)), members: vec![self.member()] }))
    }

    async fn member_promote(&self, request: Request<MemberPromoteRequest>) -> Result<Response<MemberPromoteResponse>, Status> {
        self.require_own_id(request.into_inner().id)?;
        Err(Error::MemberNotLearner.into())
    }
}

impl EtcdServer {
    fn require_own_id(&self, id: u64) -> Result<(), Error> {
        if id == self.inner.engine.ids().1 { Ok(()) } else { Err(Error::MemberNotFound) }
    }

    fn member(&self) -> Member {
        let config = &self.inner.config;
        let mut client_urls = config.client_urls.clone();
        client_urls.extend(config.more_client_urls.borrow().iter().filter(|url| !config.client_urls.contains(url)).cloned());
        Member {
            id: self.inner.engine.ids().1,
            name: config.name.clone(),
            peer_ur_ls: config.peer_urls.clone(),
            client_ur_ls: client_urls,
            is_learner: false,
        }
    }
}
