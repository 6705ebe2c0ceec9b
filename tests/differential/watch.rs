//! A watch stream of a script.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::transport::Channel;

use crate::normalise::{Answer, Normaliser};
use crate::play::{ANSWER_DEADLINE, Metadata, bidirectional, call};
use crate::script::b;
use crate::transcript::{TIMEOUT, failed};
use duet::proto::etcdserverpb::watch_request::RequestUnion;
use duet::proto::etcdserverpb::*;

/// Of the sentinel watches that find out that a stream has settled; scripts don't use such ids.
const SENTINEL_IDS: i64 = 0x5e47_0000;
const SENTINEL_KEY: &[u8] = b"\xff\xffsentinel";

/// What [`WatchStream::settle`] saw, by watch id: how many events and control responses.
pub type Counts = BTreeMap<i64, usize>;

/// An open watch stream.
pub struct WatchStream {
    /// None once the client's side is closed.
    requests: Option<mpsc::UnboundedSender<WatchRequest>>,
    responses: mpsc::UnboundedReceiver<Result<WatchResponse, Status>>,
    sentinels: i64,
    /// What arrived while something else was waited for.
    backlog: VecDeque<Result<WatchResponse, String>>,
}

impl WatchStream {
    pub fn open(channel: &Channel, metadata: &Metadata) -> WatchStream {
        let (requests, responses) = bidirectional(channel, "/etcdserverpb.Watch/Watch", metadata);
        WatchStream { requests: Some(requests), responses, sentinels: 0, backlog: VecDeque::new() }
    }

    /// Sends; a creation is waited for, because what is written next is delivered or not depending on which came first.
    pub async fn send(&mut self, request: RequestUnion) -> String {
        let creates = matches!(request, RequestUnion::CreateRequest(_));
        let request = WatchRequest { request_union: Some(request) };
        match &self.requests {
            Some(requests) if requests.send(request).is_ok() => {}
            _ => return "can't send: closed".to_owned(),
        }
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let mut waiting = creates;
        while waiting {
            let response = self.receive(deadline).await;
            waiting = response.as_ref().is_ok_and(|response| !response.created);
            self.backlog.push_back(response);
        }
        String::new()
    }

    pub fn close_send(&mut self) -> String {
        self.requests = None;
        String::new()
    }

    /// The next response, or the text for why there is none.
    async fn next(&mut self, deadline: Instant) -> Result<WatchResponse, String> {
        match self.backlog.pop_front() {
            Some(response) => response,
            None => self.receive(deadline).await,
        }
    }

    async fn receive(&mut self, deadline: Instant) -> Result<WatchResponse, String> {
        match timeout_at(deadline, self.responses.recv()).await {
            Ok(Some(Ok(response))) => Ok(response),
            Ok(Some(Err(status))) => Err(failed(&status)),
            Ok(None) => Err("end of stream".to_owned()),
            Err(_) => Err(TIMEOUT.to_owned()),
        }
    }

    /// The next `n` responses. The order is compared within a watch, not between watches, which etcd keeps in a map.
    pub async fn take(&mut self, n: usize, normaliser: &mut Normaliser) -> String {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let mut taken = Vec::new();
        let mut end = None;
        while taken.len() < n && end.is_none() {
            match self.next(deadline).await {
                Ok(mut response) => {
                    response.normalise(normaliser);
                    taken.push((response.watch_id, format!("{response:?}")));
                }
                Err(why) => end = Some(why),
            }
        }
        taken.sort_by_key(|&(id, _)| id);
        let mut answer = String::new();
        for (_, response) in taken {
            let _ = writeln!(answer, "{response}");
        }
        answer + &end.unwrap_or_default()
    }

    /// The status that ends the stream; responses before it are passed over.
    pub async fn end(mut self) -> String {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            if let Err(why) = self.next(deadline).await {
                return why;
            }
        }
    }

    /// Waits until everything that is due has arrived, and shows it by watch: control responses and events, in order.
    ///
    /// etcd replays to unsynced watches in passes over all of them, and delivers a new event to a stream behind all that it already
    /// delivered there. So when a sentinel watch that started in the past has seen its replay, and after that a second event, everything
    /// before has arrived. Another server need not have such an order: there the wait goes on for as many as the reference had (`hint`).
    pub async fn settle(
        &mut self,
        channel: &Channel,
        normaliser: &mut Normaliser,
        hint: Option<&Counts>,
        counts: &mut Counts,
    ) -> String {
        let mut seen = Seen::default();
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let end = self.settle_until(channel, normaliser, deadline, hint, &mut seen).await.err();
        *counts = seen.counts();
        seen.text() + &end.unwrap_or_default()
    }

    async fn settle_until(
        &mut self,
        channel: &Channel,
        normaliser: &mut Normaliser,
        deadline: Instant,
        hint: Option<&Counts>,
        seen: &mut Seen,
    ) -> Result<(), String> {
        if self.requests.is_none() {
            return Ok(());
        }
        let id = SENTINEL_IDS + self.sentinels;
        self.sentinels += 1;
        // A server reads a stream's requests in order: when this is answered, those before it are done with, and the writes below come
        // after them.
        let create = WatchCreateRequest { key: b(SENTINEL_KEY), watch_id: id, ..Default::default() };
        self.send(RequestUnion::CreateRequest(create)).await;
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
        let canceled = |response: &WatchResponse| response.canceled;
        self.until(id, canceled, normaliser, deadline, seen).await?;
        let start_revision = put_sentinel(channel).await?;
        self.send(RequestUnion::CreateRequest(WatchCreateRequest {
            key: b(SENTINEL_KEY),
            start_revision,
            watch_id: id,
            ..Default::default()
        }))
        .await;
        let replayed = |response: &WatchResponse| !response.events.is_empty();
        self.until(id, replayed, normaliser, deadline, seen).await?;
        put_sentinel(channel).await?;
        self.until(id, replayed, normaliser, deadline, seen).await?;
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
        self.until(id, canceled, normaliser, deadline, seen).await?;
        while let Some(hint) = hint
            && !seen.covers(hint)
        {
            let response = self.next(deadline).await?;
            seen.add(response, normaliser);
        }
        Ok(())
    }

    /// Reads until the sentinel gets a response that is `what`.
    async fn until(
        &mut self,
        sentinel: i64,
        what: impl Fn(&WatchResponse) -> bool,
        normaliser: &mut Normaliser,
        deadline: Instant,
        seen: &mut Seen,
    ) -> Result<(), String> {
        loop {
            let response = self.next(deadline).await?;
            if response.watch_id == sentinel {
                if what(&response) {
                    return Ok(());
                }
            } else if response.watch_id < SENTINEL_IDS {
                seen.add(response, normaliser);
            }
        }
    }
}

async fn put_sentinel(channel: &Channel) -> Result<i64, String> {
    let put = PutRequest { key: b(SENTINEL_KEY), ..Default::default() };
    match call::<_, PutResponse>(channel, "/etcdserverpb.KV/Put", put, &[]).await {
        Ok(response) => Ok(response.header.unwrap_or_default().revision),
        Err(status) => Err(failed(&status)),
    }
}

/// What arrived, by watch.
#[derive(Default)]
struct Seen(BTreeMap<i64, Vec<String>>);

impl Seen {
    fn add(&mut self, mut response: WatchResponse, normaliser: &mut Normaliser) {
        response.normalise(normaliser);
        let events = std::mem::take(&mut response.events);
        let of = self.0.entry(response.watch_id).or_default();
        if events.is_empty() {
            of.push(format!("{response:?}"));
            return;
        }
        let last = events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        let header = response.header.unwrap_or_default().revision;
        of.extend(events.iter().map(|event| format!("{event:?}")));
        // Which responses a replay comes in is a matter of timing, but none may run behind its own events.
        if header < last {
            of.push(format!("the header's revision {header} is before {last}"));
        }
    }

    fn counts(&self) -> Counts {
        self.0.iter().map(|(&id, of)| (id, of.len())).collect()
    }

    fn covers(&self, hint: &Counts) -> bool {
        hint.iter().all(|(id, &n)| self.0.get(id).is_some_and(|of| of.len() >= n))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (id, of) in &self.0 {
            for line in of {
                let _ = writeln!(text, "watch {id}: {line}");
            }
        }
        text
    }
}
