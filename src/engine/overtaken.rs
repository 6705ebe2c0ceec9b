//! Noticing that another replica has become the writer, for a replica that has no session on which it could be told.
//!
//! It deliberately decides nothing: who writes is decided by PostgreSQL's lock alone.

use std::time::Duration;

use super::{ReadRight, Role, Shared};

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Resolves when another replica has become the writer while this one still holds its clients' requests, because it hoped to be the
/// writer again: without a session it isn't told, and its clients and their watches would wait for as long as the other one lives.
pub(super) async fn overtaken(shared: &Shared) {
    if *shared.role.borrow() != Role::Recovering || matches!(shared.options.read_right, ReadRight::Exclusive) {
        return std::future::pending().await;
    }
    let mut looks = tokio::time::interval(INTERVAL);
    loop {
        looks.tick().await;
        let overtaken = match shared.options.read_right {
            // Its own URLs: the session that was lost hasn't let go of the lock yet.
            ReadRight::Confirm => {
                matches!(shared.log.leader().await, Ok(Some(leader)) if leader.urls != shared.options.advertise_client_urls)
            }
            ReadRight::Exclusive | ReadRight::Lease(_) => !shared.log.may_write(),
        };
        if overtaken {
            return;
        }
    }
}
