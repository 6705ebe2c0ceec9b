//! Measures a takeover by phase: from the leader's last sign of life to the first request that is answered here.

use super::clock;
use super::history::{History, Takeover};
use crate::supervisor::fsm::{Action, NodeId, Note, Postgres, State};
use crate::types::Millis;

/// Measures a takeover of this node's by phase.
#[derive(Debug, Default)]
pub(super) struct TakeoverClock(Option<UnderWay>);

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    unplanned: bool,
    /// The leader's last sign, or its request.
    sign: Millis,
    asked: Millis,
    owned: Option<Millis>,
    promoted: Option<Millis>,
    opened: Option<Millis>,
}

impl TakeoverClock {
    /// After a step.
    pub fn stepped(&mut self, after: &State, actions: &[Action], now: Millis) {
        if actions.contains(&Action::Note(Note::Forced)) {
            self.0 = Some(UnderWay { unplanned: false, sign: now, asked: now, owned: None, promoted: None, opened: None });
        }
        if actions.contains(&Action::Note(Note::TakesOver)) {
            // The heartbeat that asked for it, if one did, is the newest.
            let released = after.peer.is_some_and(|peer| peer.heartbeat.released);
            let sign = after.peer.map_or(now, |peer| peer.heard_at);
            self.0 = Some(UnderWay { unplanned: !released, sign, asked: now, owned: None, promoted: None, opened: None });
        }
        let Some(under_way) = &mut self.0 else { return };
        let owner: Option<NodeId> = after.record.seen.map(|seen| seen.owner);
        if owner == Some(after.me()) {
            under_way.owned.get_or_insert(now);
        }
        if under_way.owned.is_some() && matches!(after.postgres, Postgres::Primary(_)) {
            under_way.promoted.get_or_insert(now);
        }
        if after.may_acknowledge(now) {
            under_way.opened.get_or_insert(now);
        }
        if under_way.owned.is_some() && owner != Some(after.me()) {
            self.0 = None;
        }
    }

    /// Requests are answered, or not any more.
    pub fn serving(&mut self, serves: bool, state: &State, history: &History) {
        let Some(UnderWay { unplanned, sign, asked, owned: Some(owned), promoted: Some(promoted), opened: Some(opened) }) =
            self.0
        else {
            return;
        };
        if !serves {
            return;
        }
        self.0 = None;
        let now = clock::now();
        let takeover = Takeover {
            unplanned,
            detect_ms: asked.saturating_sub(sign),
            decide_ms: owned.saturating_sub(asked),
            promote_ms: promoted.saturating_sub(owned),
            open_ms: opened.saturating_sub(promoted),
            serve_ms: now.saturating_sub(opened),
        };
        let text = format!(
            "took over in {} ms: detect {}, decide {}, promote {}, open {}, serve {}",
            now.saturating_sub(sign),
            takeover.detect_ms,
            takeover.decide_ms,
            takeover.promote_ms,
            takeover.open_ms,
            takeover.serve_ms
        );
        history.add(state, "took-over", text, Some(takeover));
    }
}
