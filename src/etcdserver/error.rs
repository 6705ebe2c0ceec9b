//! etcd's gRPC errors: every text and the code that goes with it.
//!
//! Clients match these errors by their exact text (`rpctypes.Error` in Go, string comparison elsewhere), so a text here is never
//! reworded; what an operator needs beyond it goes to the log. The table is that of etcd 3.7.3's `api/v3rpc/rpctypes`, and a test
//! compares it with a list taken from there.
//!
//! Deliberately not here: when an error is given. That is decided by `validate`, by the services and by the engine.

use tonic::{Code, Status};

use crate::engine;

macro_rules! rpc_errors {
    ($($name:ident = $code:ident: $text:literal;)*) => {
        /// An error that a client of etcd knows; named as in etcd's `rpctypes`, without the `ErrGRPC`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs)] // the text says it
        pub enum Error {
            $($name,)*
        }

        impl Error {
            /// Every error, in the order of etcd's table.
            pub const ALL: &[Error] = &[$(Error::$name,)*];

            /// The gRPC status code that goes with the text.
            pub fn code(self) -> Code {
                match self {
                    $(Error::$name => Code::$code,)*
                }
            }

            /// The exact text that clients compare.
            pub fn text(self) -> &'static str {
                match self {
                    $(Error::$name => $text,)*
                }
            }

            /// The name in etcd's `rpctypes`, without the `ErrGRPC`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Error::$name => stringify!($name),)*
                }
            }
        }
    };
}

rpc_errors! {
    EmptyKey = InvalidArgument: "etcdserver: key is not provided";
    KeyNotFound = InvalidArgument: "etcdserver: key not found";
    ValueProvided = InvalidArgument: "etcdserver: value is provided";
    LeaseProvided = InvalidArgument: "etcdserver: lease is provided";
    TooManyOps = InvalidArgument: "etcdserver: too many operations in txn request";
    DuplicateKey = InvalidArgument: "etcdserver: duplicate key given in txn request";
    InvalidClientAPIVersion = InvalidArgument: "etcdserver: invalid client api version";
    InvalidSortOption = InvalidArgument: "etcdserver: invalid sort option";
    Compacted = OutOfRange: "etcdserver: mvcc: required revision has been compacted";
    FutureRev = OutOfRange: "etcdserver: mvcc: required revision is a future revision";
    NoSpace = ResourceExhausted: "etcdserver: mvcc: database space exceeded";
    LeaseNotFound = NotFound: "etcdserver: requested lease not found";
    LeaseExist = FailedPrecondition: "etcdserver: lease already exists";
    LeaseTTLTooLarge = OutOfRange: "etcdserver: too large lease TTL";
    WatchCanceled = Cancelled: "etcdserver: watch canceled";
    MemberExist = FailedPrecondition: "etcdserver: member ID already exist";
    PeerURLExist = FailedPrecondition: "etcdserver: Peer URLs already exists";
    MemberNotEnoughStarted = FailedPrecondition: "etcdserver: re-configuration failed due to not enough started members";
    MemberBadURLs = InvalidArgument: "etcdserver: given member URLs are invalid";
    MemberNotFound = NotFound: "etcdserver: member not found";
    MemberNotLearner = FailedPrecondition: "etcdserver: can only promote a learner member";
    LearnerNotReady = FailedPrecondition: "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners = FailedPrecondition: "etcdserver: too many learner members in cluster";
    ClusterIDMismatch = FailedPrecondition: "etcdserver: cluster ID mismatch";
    RequestTooLarge = InvalidArgument: "etcdserver: request is too large";
    RequestTooManyRequests = ResourceExhausted: "etcdserver: too many requests";
    RootUserNotExist = FailedPrecondition: "etcdserver: root user does not exist";
    RootRoleNotExist = FailedPrecondition: "etcdserver: root user does not have root role";
    UserAlreadyExist = FailedPrecondition: "etcdserver: user name already exists";
    UserEmpty = InvalidArgument: "etcdserver: user name is empty";
    UserNotFound = FailedPrecondition: "etcdserver: user name not found";
    RoleAlreadyExist = FailedPrecondition: "etcdserver: role name already exists";
    RoleNotFound = FailedPrecondition: "etcdserver: role name not found";
    RoleEmpty = InvalidArgument: "etcdserver: role name is empty";
    AuthFailed = InvalidArgument: "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven = InvalidArgument: "etcdserver: permission not given";
    PermissionDenied = PermissionDenied: "etcdserver: permission denied";
    RoleNotGranted = FailedPrecondition: "etcdserver: role is not granted to the user";
    PermissionNotGranted = FailedPrecondition: "etcdserver: permission is not granted to the role";
    AuthNotEnabled = FailedPrecondition: "etcdserver: authentication is not enabled";
    InvalidAuthToken = Unauthenticated: "etcdserver: invalid auth token";
    InvalidAuthMgmt = InvalidArgument: "etcdserver: invalid auth management";
    AuthOldRevision = InvalidArgument: "etcdserver: revision of auth store is old";
    NoLeader = Unavailable: "etcdserver: no leader";
    NotLeader = FailedPrecondition: "etcdserver: not leader";
    LeaderChanged = Unavailable: "etcdserver: leader changed";
    NotCapable = FailedPrecondition: "etcdserver: not capable";
    Stopped = Unavailable: "etcdserver: server stopped";
    Timeout = Unavailable: "etcdserver: request timed out";
    TimeoutDueToLeaderFail = Unavailable: "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutDueToConnectionLost = Unavailable: "etcdserver: request timed out, possibly due to connection lost";
    TimeoutWaitAppliedIndex = Unavailable: "etcdserver: request timed out, waiting for the applied index took too long";
    Unhealthy = Unavailable: "etcdserver: unhealthy cluster";
    Corrupt = DataLoss: "etcdserver: corrupt cluster";
    NotSupportedForLearner = FailedPrecondition: "etcdserver: rpc not supported for learner";
    BadLeaderTransferee = FailedPrecondition: "etcdserver: bad leader transferee";
    WrongDowngradeVersionFormat = InvalidArgument: "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTargetVersion = InvalidArgument: "etcdserver: invalid downgrade target version";
    ClusterVersionUnavailable = FailedPrecondition: "etcdserver: cluster version not found during downgrade";
    DowngradeInProcess = FailedPrecondition: "etcdserver: cluster has a downgrade job in progress";
    NoInflightDowngrade = FailedPrecondition: "etcdserver: no inflight downgrade job";
    Canceled = Cancelled: "etcdserver: request canceled";
    DeadlineExceeded = DeadlineExceeded: "etcdserver: context deadline exceeded";
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Status::new(error.code(), error.text())
    }
}

/// What a client is told when a write was certainly not applied and may be sent again.
///
/// Of all answers to a transaction this is the only one after which clientv3 tries again by itself: it takes the text for its own
/// "no connection" error (`isSafeRetryMutableRPC`). Never give it when the outcome is unknown.
fn certainly_not_applied() -> Status {
    Status::unavailable("there is no connection available")
}

/// What the client of a write is told of the engine's failure.
pub fn of_write(error: engine::Error) -> Status {
    match error {
        engine::Error::NotApplied | engine::Error::NoLeader | engine::Error::Stopped => certainly_not_applied(),
        engine::Error::Storage(cause) => {
            tracing::warn!(%cause, "a write was refused because storage failed a read that it needed; its client tries again");
            certainly_not_applied()
        }
        error => of_read(error),
    }
}

/// What the client of a read is told of the engine's failure. Unavailable makes clients read again.
pub fn of_read(error: engine::Error) -> Status {
    let known = match error {
        engine::Error::Compacted => Error::Compacted,
        engine::Error::FutureRevision => Error::FutureRev,
        engine::Error::LeaseNotFound => Error::LeaseNotFound,
        engine::Error::LeaseExists => Error::LeaseExist,
        engine::Error::KeyNotFound => Error::KeyNotFound,
        engine::Error::NoSpace => Error::NoSpace,
        // etcd's table has its client's error here, which is no gRPC status, so that the text arrives with the code Unknown.
        engine::Error::TooManyRequests => return Status::unknown(Error::RequestTooManyRequests.text()),
        engine::Error::Timeout | engine::Error::NotApplied => Error::Timeout,
        engine::Error::NoLeader => Error::NoLeader,
        engine::Error::Stopped => Error::Stopped,
        engine::Error::Storage(cause) => {
            tracing::warn!(%cause, "a read failed");
            return Status::unavailable(format!("duet: the database failed a read, try again: {cause}"));
        }
    };
    known.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_certainly_not_applied_gets_the_text_after_which_clients_send_a_write_again() {
        let retried = |error| of_write(error).message() == "there is no connection available";
        assert!(retried(engine::Error::NotApplied));
        assert!(retried(engine::Error::NoLeader));
        assert!(!retried(engine::Error::Timeout), "its outcome is unknown");
        assert!(!retried(engine::Error::NoSpace), "sending it again doesn't help");
        assert_eq!(of_write(engine::Error::Timeout).message(), "etcdserver: request timed out");
        assert_eq!(of_write(engine::Error::Timeout).code(), Code::Unavailable);
    }

    #[test]
    fn too_many_requests_arrive_under_the_code_that_etcd_sends() {
        let status = of_write(engine::Error::TooManyRequests);
        assert_eq!((status.code(), status.message()), (Code::Unknown, "etcdserver: too many requests"));
    }

    #[test]
    fn a_failed_read_is_unavailable_so_that_clients_read_again() {
        assert_eq!(of_read(engine::Error::Storage("x".into())).code(), Code::Unavailable);
        assert_eq!(of_read(engine::Error::NotApplied).code(), Code::Unavailable);
    }

    #[test]
    fn no_two_errors_share_a_text_because_the_text_decides_the_code() {
        let texts: std::collections::BTreeSet<_> = Error::ALL.iter().map(|error| error.text()).collect();
        assert_eq!(texts.len(), Error::ALL.len());
    }
}
