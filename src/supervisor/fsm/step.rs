//! What every event does first, whatever the node's part; then the part reacts to what is known now.

use super::event::{Action, Event, Goal, Grant, Heartbeat, Note, Postgres, Sync, Wish};
use super::register::{Mode, Record, Register};
use super::state::{Peer, Phase, State, Third};
use crate::types::Millis;

/// The node's next state, and what is to be done, in order.
pub fn step(state: &State, event: Event, now: Millis) -> (State, Vec<Action>) {
    let mut step = Step { state: *state, actions: Vec::new(), now, send: false };
    step.forgive();
    step.take(event);
    step.react();
    step.finish()
}

/// A step under way.
pub(super) struct Step {
    pub(super) state: State,
    pub(super) actions: Vec<Action>,
    pub(super) now: Millis,
    /// A heartbeat goes out at the end.
    pub(super) send: bool,
}

impl Step {
    /// My pause is not your failure: a tick that didn't come in its time tells that this process was stopped, or kept from the processor,
    /// whichever event is the first to come after it.
    fn forgive(&mut self) {
        let expected = self.state.ticked_at.max(self.state.forgiven_at);
        if self.now > expected + 3 * self.state.setup.timing.heartbeat {
            self.state.forgiven_at = self.now;
            self.state.unconfirmed_since = self.state.unconfirmed_since.map(|_| self.now);
            self.note(Note::WasLate);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick => self.tick(),
            Event::Heard(heartbeat) => self.heard(heartbeat),
            Event::Read(answer) => self.answered(answer),
            Event::Swapped { new, outcome } => self.swapped(new, outcome),
            Event::Postgres(postgres) => self.postgres(postgres),
            Event::RebuildNeeded => self.rebuild_needed(),
            Event::Introduced => self.send = true,
            Event::Drained => self.drained(),
            Event::Stalled => self.stalled(),
            Event::Disk { short } => {
                self.state.short_of_disk = short;
                self.send = true;
            }
            Event::Operator(wish) => self.wish(wish),
        }
    }

    fn react(&mut self) {
        self.swap_again();
        match self.state.phase {
            Phase::Boot => self.boot(),
            Phase::Leader => self.lead(),
            Phase::Follower => self.follow(),
        }
    }

    fn finish(mut self) -> (State, Vec<Action>) {
        if self.send {
            let heartbeat = self.heartbeat();
            self.actions.push(Action::Send(heartbeat));
        }
        (self.state, self.actions)
    }

    fn tick(&mut self) {
        let (now, timing) = (self.now, self.state.setup.timing);
        self.state.ticked_at = now;
        if self.state.paused_until.take_if(|until| now >= *until).is_some() {
            self.note(Note::Resumed);
        }
        if self.state.peer_away_until.is_some_and(|until| now >= until) {
            self.wish(Wish::PeerBack);
        }
        if self.state.setup.third == Third::Witness && self.state.asked_at.is_none_or(|asked| now >= asked + timing.ask) {
            self.ask();
        }
        self.send = true;
    }

    fn heard(&mut self, heartbeat: Heartbeat) {
        let newest = self.state.peer.map_or((0, 0), |peer| (peer.heartbeat.process, peer.heartbeat.sent_at));
        let stranger = heartbeat.from != self.state.me().peer() || heartbeat.fences != self.state.fences();
        if stranger || (heartbeat.process, heartbeat.sent_at) < newest {
            return;
        }
        // A process that has just started needs to know what there is.
        self.send |= heartbeat.process > newest.0;
        if heartbeat.process > newest.0 || heartbeat.released {
            // The process that held the lease has ended, or has given it up.
            let first = self.state.peer.is_none();
            if !first || heartbeat.released {
                self.state.promised_until = self.state.promised_until.min(self.now);
            }
        }
        self.state.peer = Some(Peer { heartbeat, heard_at: self.now });
        self.state.known_to_peer |= heartbeat.hears == Some(self.state.record.process);
        self.unfence();
        if let Some(seen) = heartbeat.seen {
            if seen.owner == self.state.me() && seen.version > self.state.record.version() {
                // It has given its right away, and uses no lease any more.
                self.state.promised_until = self.state.promised_until.min(self.now);
            }
            // A disk that was replaced may have known better than an owner which has been away: it doesn't become that one's echo.
            let is_sure = seen.owner != heartbeat.from || heartbeat.leading;
            if self.state.record.seen.is_some() || is_sure {
                self.adopt(seen, heartbeat.instance);
            }
        }
        self.use_grant(&heartbeat);
        self.consider_proposal(&heartbeat);
        self.promise(&heartbeat);
    }

    /// Promises the leader not to take over for the length of a lease, unless it may have asked the witness for that already.
    fn promise(&mut self, heartbeat: &Heartbeat) {
        if self.state.phase == Phase::Follower && self.state.pending.is_none() && self.peer_leads() {
            let lasts = self.state.setup.timing.lease;
            // A longer one of an earlier process, under another profile, is forgotten when it has come to its end.
            let longer = self.state.record.promises > lasts && self.now + lasts < self.state.promised_until;
            if !longer {
                self.persist(|record| record.promises = lasts);
            }
            self.state.granted = Some(Grant { process: heartbeat.process, sent_at: heartbeat.sent_at, lasts });
            // An earlier process may have promised more, under another profile.
            self.state.promised_until = self.state.promised_until.max(self.now + lasts);
            self.send = true;
        }
    }

    fn use_grant(&mut self, heartbeat: &Heartbeat) {
        let Some(grant) = heartbeat.grant else { return };
        let void = self.state.released_at.is_some_and(|released| grant.sent_at <= released);
        if grant.process == self.state.record.process && !void && self.state.phase == Phase::Leader {
            // What the follower has promised counts, not what this node would have.
            let until = grant.sent_at + grant.lasts.saturating_sub(self.state.setup.timing.drift);
            self.state.lease_until = self.state.lease_until.max(until);
            self.state.granted_sent_at = self.state.granted_sent_at.max(grant.sent_at);
        }
    }

    /// A follower agrees to ASYM when it is the owner's wish; with a fencing device to every mode. A takeover that it may have asked for is void from then on, for both,
    /// because its version is smaller.
    fn consider_proposal(&mut self, heartbeat: &Heartbeat) {
        let Some(proposal) = heartbeat.proposal.filter(|_| !self.state.leaving) else { return };
        let newer = proposal.version > self.state.record.version()
            && self.state.pending.is_none_or(|pending| proposal.version > pending.new.version);
        let agreed = proposal.mode == Mode::Asym || self.state.fences();
        let owners =
            agreed && self.state.record.seen.is_some_and(|seen| seen.owner == heartbeat.from && seen.epoch == proposal.epoch);
        if proposal.owner == heartbeat.from && newer && owners {
            self.state.pending = None;
            self.adopt(proposal, heartbeat.instance);
            self.send = true;
        }
    }

    fn postgres(&mut self, postgres: Postgres) {
        let was = self.state.postgres;
        self.state.postgres = postgres;
        match postgres {
            Postgres::Primary(sync) => {
                self.state.unconfirmed_since = match sync {
                    Sync::Confirmed | Sync::Off { .. } => None,
                    Sync::Waiting => self.state.unconfirmed_since.or(Some(self.now)),
                };
            }
            Postgres::Standby { streaming, consistent, advanced } => {
                if streaming {
                    self.state.streamed_at = Some(self.now);
                }
                if advanced {
                    self.state.advanced_at = Some(self.now);
                }
                if streaming && consistent && !self.state.record.complete {
                    self.persist(|record| record.complete = true);
                    self.send = true;
                }
            }
            Postgres::Down | Postgres::Busy => {}
        }
        if matches!(was, Postgres::Primary(_)) && !matches!(postgres, Postgres::Primary(_)) {
            self.state.down_since = self.now;
            self.state.opened = false;
            // The peer may be asked to take over from now on: no lease that it granted so far is used again.
            self.state.lease_until = 0;
            self.state.released_at = Some(self.now);
            self.send = true;
        }
    }

    fn rebuild_needed(&mut self) {
        // Not while it may become the owner at any moment.
        let follows = self.state.phase == Phase::Follower && self.state.pending.is_none();
        let led = self.peer_leads() && self.state.hears_peer(self.state.setup.timing.solo_after, self.now);
        if follows && self.state.record.complete && led {
            self.note(Note::Rebuilds);
            self.persist(|record| {
                record.complete = false;
                record.rebuilds_in = record.seen.map(|seen| seen.epoch);
            });
            self.send = true;
        }
    }

    fn wish(&mut self, wish: Wish) {
        match wish {
            Wish::Switchover => self.switch_over(),
            Wish::AcceptDataLoss => self.take_over_by_force(),
            Wish::Pause { until } => {
                self.state.paused_until = Some(until);
                self.note(Note::Paused);
            }
            Wish::Resume => {
                if self.state.paused_until.take().is_some() {
                    self.note(Note::Resumed);
                }
            }
            Wish::PeerAway { until } => {
                let able = self.state.phase == Phase::Leader && self.state.opened && self.state.handover.is_none();
                if able && self.state.peer_away_until.replace(until).is_none() {
                    self.note(Note::PeerAway);
                }
            }
            Wish::Leave => self.leave(),
            Wish::PeerBack => {
                if self.state.peer_away_until.take().is_some() {
                    self.note(Note::PeerBack);
                }
            }
        }
    }

    /// Takes a value as the one that holds now, if it is newer than what is known.
    pub(super) fn adopt(&mut self, value: Register, instance: Option<u64>) {
        if value.version <= self.state.record.version() {
            return;
        }
        self.state.issued = self.state.issued.max(value.version);
        self.state.adopted_at = self.now;
        if self.state.record.seen.map(|seen| seen.mode) != Some(value.mode) {
            self.note(match value.mode {
                Mode::Pair => Note::Paired,
                Mode::Solo => Note::Solo,
                Mode::Asym => Note::AgreedAsym,
            });
        }
        self.persist(|record| {
            record.seen = Some(value);
            record.instance = instance.or(record.instance);
            record.intent = record.intent.filter(|intent| intent.new.version > value.version);
        });
        self.state.proposal = self.state.proposal.filter(|proposal| proposal.version > value.version);
        if self.state.pending.is_some_and(|pending| pending.new.version <= value.version) {
            self.state.pending = None;
        }
        self.send = true;
        self.obey();
    }

    /// Takes the part that the register gives to this node.
    fn obey(&mut self) {
        match self.state.phase {
            Phase::Leader if !self.state.is_owner() => {
                self.note(Note::Demoted);
                if self.state.handover.take().is_some() {
                    self.actions.push(Action::Undrain);
                }
                self.become_follower();
            }
            Phase::Follower if self.state.is_owner() => self.become_leader(),
            _ => {}
        }
    }

    /// What was asked of the witness by an earlier process of this node may be granted late, when the copy isn't whole any more. The
    /// peer has everything then, because nobody has led since.
    fn return_ownership(&mut self) {
        let gift =
            Register { version: self.next_version(), epoch: self.epoch() + 1, owner: self.state.me().peer(), mode: Mode::Solo };
        self.adopt(gift, None);
    }

    pub(super) fn become_leader(&mut self) {
        if !self.state.record.complete {
            let led_by_peer = self.state.record.rebuilds_in.is_some_and(|epoch| epoch + 1 == self.epoch());
            if led_by_peer {
                return self.return_ownership();
            }
            // An owner whose data is gone: only the operator can say that what it acknowledged alone may be lost.
            if self.state.phase == Phase::Follower {
                self.note(Note::OwnsNothing);
            }
            return;
        }
        self.state.phase = Phase::Leader;
        self.state.opened = false;
        self.state.lease_until = 0;
        self.state.released_at = Some(self.now);
        self.state.down_since = self.now;
        self.state.unconfirmed_since = None;
        self.state.hands_over_again_at = self.now + self.state.setup.timing.backoff;
        self.note(Note::Leads);
        self.send = true;
    }

    pub(super) fn become_follower(&mut self) {
        self.state.phase = Phase::Follower;
        self.state.opened = false;
        self.state.lease_until = 0;
        self.state.peer_away_until = None;
        self.state.proposal = None;
        self.state.streamed_at = None;
        self.state.advanced_at = None;
        self.state.granted = None;
        // A silence before this says nothing about the leader that is followed from now on.
        self.state.forgiven_at = self.now;
        self.note(Note::Follows);
        self.pursue(Goal::Standby { rebuild: !self.state.record.complete });
        self.send = true;
    }

    pub(super) fn persist(&mut self, change: impl FnOnce(&mut Record)) {
        let before = self.state.record;
        change(&mut self.state.record);
        if before != self.state.record {
            self.actions.push(Action::Persist(self.state.record));
        }
    }

    pub(super) fn pursue(&mut self, goal: Goal) {
        if self.state.goal != goal {
            self.state.goal = goal;
            if goal == (Goal::Primary { sync: false }) && matches!(self.state.postgres, Postgres::Primary(_)) {
                // What was confirmed until now says nothing about a peer that isn't waited for any more.
                self.state.postgres = Postgres::Primary(Sync::Off { caught_up: false });
                self.state.unconfirmed_since = None;
            }
            self.actions.push(Action::Pursue(goal));
        }
    }

    pub(super) fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    /// A version that nobody has used.
    pub(super) fn next_version(&mut self) -> u64 {
        self.state.issued =
            self.state.issued.max(self.state.record.version()).max(self.state.answer.map_or(0, |a| a.version())) + 1;
        self.state.issued
    }

    /// Whether the peer says that it leads, in the epoch that this node knows.
    fn peer_leads(&self) -> bool {
        self.state.peer.is_some_and(|peer| {
            peer.heartbeat.leading && peer.heartbeat.seen.map(|seen| seen.epoch) == self.state.record.seen.map(|seen| seen.epoch)
        })
    }

    /// What this node says of itself now.
    fn heartbeat(&self) -> Heartbeat {
        let state = &self.state;
        let streams = matches!(state.postgres, Postgres::Standby { streaming: true, consistent: true, .. });
        // The leader may be what has just gone: what was received up to then still counts.
        let warm = state.streamed_at.is_some_and(|at| self.now < at + state.setup.timing.warm);
        let standby = matches!(state.postgres, Postgres::Standby { .. });
        let consistent = matches!(state.postgres, Postgres::Standby { consistent: true, .. });
        Heartbeat {
            from: state.me(),
            process: state.record.process,
            sent_at: self.now,
            seen: state.record.seen,
            instance: state.record.instance,
            leading: state.phase == Phase::Leader && !state.has_released() && !self.releases(),
            released: self.releases(),
            handing_over: state.has_released(),
            grant: state.granted.filter(|_| state.phase == Phase::Follower),
            proposal: state.proposal,
            fences: state.fences(),
            hears: state.peer.map(|peer| peer.heartbeat.process),
            hears_witness: state.witness_is_there(self.now),
            paused: state.paused_until.is_some(),
            able: state.phase == Phase::Follower && !state.leaving && state.record.complete && consistent,
            short_of_disk: state.short_of_disk,
            ready: state.phase == Phase::Follower && !state.leaving && state.record.complete && (streams || warm && standby),
        }
    }
}
