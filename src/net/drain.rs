//! Holding new requests back, for a moment, until those under way are answered: how a switchover fails none.
//!
//! Streams that live as long as their clients (watches, lease keep-alives) aren't waited for: they are resumed by their clients, or
//! go on. A hold has a bound: after it a request goes its way, wherever that leads by then.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use http::{Request, Response};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tower::ServiceExt;

use super::HOLD_MAX;

/// Since when a request has been held, in its extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldSince(pub Instant);

/// Calls that last.
const LASTING: [&str; 5] = [
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Requests under way, and whether new ones wait; clones share it.
#[derive(Clone)]
pub struct Drain(Arc<Shared>);

struct Shared {
    held: watch::Sender<bool>,
    under_way: AtomicUsize,
    less: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(Shared { held: watch::Sender::new(false), under_way: AtomicUsize::new(0), less: Notify::new() }))
    }
}

impl Drain {
    /// Holds new requests from now on.
    pub fn hold(&self) {
        self.0.held.send_replace(true);
    }

    /// Lets them go on.
    pub fn release(&self) {
        self.0.held.send_if_modified(|held| std::mem::replace(held, false));
    }

    /// Resolves when nothing is under way.
    pub async fn drained(&self) {
        loop {
            let less = self.0.less.notified();
            if self.0.under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            less.await;
        }
    }

    /// Counts the caller's request while the answer lives; `None` while requests are held.
    fn enter(&self) -> Option<UnderWay> {
        // Counted before the look: whoever holds from now on sees this one.
        self.0.under_way.fetch_add(1, Ordering::SeqCst);
        let entered = UnderWay(Arc::clone(&self.0));
        if *self.0.held.borrow() { None } else { Some(entered) }
    }

    /// As [`Drain::enter`], after a hold, but not for ever.
    async fn wait(&self) -> UnderWay {
        let mut held = self.0.held.subscribe();
        let deadline = Instant::now() + HOLD_MAX;
        loop {
            if let Some(entered) = self.enter() {
                return entered;
            }
            if tokio::time::timeout_at(deadline, held.wait_for(|held| !held)).await.is_err() {
                self.0.under_way.fetch_add(1, Ordering::SeqCst);
                return UnderWay(Arc::clone(&self.0));
            }
        }
    }
}

/// One request; not under way any more when it is dropped.
struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.less.notify_waiters();
        }
    }
}

impl<S> tower::Layer<S> for Drain {
    type Service = Draining<S>;

    fn layer(&self, inner: S) -> Draining<S> {
        Draining { inner, drain: self.clone() }
    }
}

/// The service that [`Drain`], as a layer, makes.
#[derive(Clone)]
pub struct Draining<S> {
    inner: S,
    drain: Drain,
}

impl<S> tower::Service<Request<Body>> for Draining<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if LASTING.contains(&request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        if let Some(entered) = self.drain.enter() {
            let answer = self.inner.call(request);
            return Box::pin(async move {
                let _entered = entered;
                answer.await
            });
        }
        let (inner, drain) = (self.inner.clone(), self.drain.clone());
        request.extensions_mut().insert(HeldSince(Instant::now()));
        Box::pin(async move {
            let _entered = drain.wait().await;
            inner.oneshot(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::time::Duration;
    use tokio::sync::Semaphore;
    use tower::{Layer, Service};

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    /// A service that answers when there is a permit.
    fn service(
        drain: &Drain,
        permits: &Arc<Semaphore>,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {
        let permits = Arc::clone(permits);
        drain.layer(tower::service_fn(move |_: Request<Body>| {
            let permits = Arc::clone(&permits);
            async move {
                permits.acquire().await.unwrap().forget();
                Ok(Response::new(Body::empty()))
            }
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_waited_for_and_what_comes_later_waits_itself() {
        let (drain, permits) = (Drain::default(), Arc::new(Semaphore::new(0)));
        let service = service(&drain, &permits);
        let first = tokio::spawn(service.clone().oneshot(request("/etcdserverpb.KV/Put")));
        let watch = tokio::spawn(service.clone().oneshot(request("/etcdserverpb.Watch/Watch")));
        tokio::task::yield_now().await;
        drain.hold();
        let second = tokio::spawn(service.oneshot(request("/etcdserverpb.KV/Put")));
        let mut drained = std::pin::pin!(drain.drained());
        assert!(tokio::time::timeout(Duration::from_millis(100), drained.as_mut()).await.is_err());
        permits.add_permits(2);
        drained.await;
        assert!(first.await.is_ok() && watch.await.is_ok() && !second.is_finished());
        permits.add_permits(1);
        drain.release();
        assert!(second.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_ends_by_itself() {
        let (drain, permits) = (Drain::default(), Arc::new(Semaphore::new(1)));
        drain.hold();
        let begun = Instant::now();
        service(&drain, &permits).oneshot(request("/etcdserverpb.KV/Put")).await.unwrap();
        assert!(begun.elapsed() >= HOLD_MAX);
    }
}
