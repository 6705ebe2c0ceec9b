//! Single steps of the pair's state machine: what one event does to a node that knows this and that, and what operators are told of it. What
//! many steps do together is for the model and the simulation.

use duet::supervisor::fsm::{
    Action, Answer, Event, Goal, Grant, Heartbeat, Mode, NodeId, Note, Phase, Postgres, Record, Register, Setup, State, Sync,
    Third, Timing, Wish, step,
};

use duet::supervisor::pair::history::Takeovers;
use duet::supervisor::pair::status::{NodeStatus, Survives};
use duet::supervisor::postgres::pair::Details;

const TIMING: Timing = Timing::FAST;
const INSTANCE: u64 = 77;
/// When everything here happens.
const NOW: u64 = 1_000_000;

fn register(owner: NodeId, mode: Mode) -> Register {
    Register { version: 9, epoch: 3, owner, mode }
}

/// A node that has run for long, knows `seen`, and was told everything a moment ago.
fn node(me: NodeId, seen: Register) -> State {
    let setup = Setup { me, timing: TIMING, third: Third::Witness, begins: me == NodeId::A };
    let record = Record { seen: Some(seen), instance: Some(INSTANCE), complete: true, process: 1, ..Record::default() };
    let mut state = State::new(setup, record, NOW - 100_000);
    state.forgiven_at = NOW - 100_000;
    state.ticked_at = NOW - TIMING.heartbeat;
    state.answer = Some(Answer { instance: INSTANCE, value: Some(seen) });
    state.answered_at = NOW;
    state.promised_until = NOW;
    state
}

fn follower() -> State {
    let mut state = node(NodeId::B, register(NodeId::A, Mode::Pair));
    state.phase = Phase::Follower;
    state.goal = Goal::Standby { rebuild: false };
    state.postgres = Postgres::Standby { streaming: true, consistent: true, advanced: false };
    state.streamed_at = Some(NOW);
    state
}

fn leader() -> State {
    let mut state = node(NodeId::A, register(NodeId::A, Mode::Pair));
    state.phase = Phase::Leader;
    state.goal = Goal::Primary { sync: true };
    state.postgres = Postgres::Primary(Sync::Confirmed);
    state.opened = true;
    state.released_at = Some(NOW - 50_000);
    state
}

/// What `from` says of itself when it follows or leads in step.
fn heartbeat(from: NodeId, seen: Option<Register>) -> Heartbeat {
    let leads = seen.is_some_and(|seen| seen.owner == from);
    Heartbeat {
        from,
        process: 5,
        sent_at: 4_000,
        seen,
        instance: seen.map(|_| INSTANCE),
        leading: leads,
        released: false,
        handing_over: false,
        grant: None,
        proposal: None,
        hears: Some(1),
        fences: false,
        hears_witness: true,
        paused: false,
        short_of_disk: false,
        ready: !leads,
        able: !leads,
    }
}

fn heard(state: &State, heartbeat: Heartbeat, now: u64) -> State {
    step(state, Event::Heard(heartbeat), now).0
}

fn swaps(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Swap { .. }))
}

#[test]
fn a_pause_of_ones_own_blames_nobody_whatever_event_comes_first_after_it() {
    let state = heard(&follower(), heartbeat(NodeId::A, Some(register(NodeId::A, Mode::Pair))), NOW);
    let later = NOW + 5_000;
    let answer = Answer { instance: INSTANCE, value: state.record.seen };
    for event in [Event::Read(answer), Event::Postgres(state.postgres), Event::Disk { short: false }, Event::Tick] {
        let (state, actions) = step(&state, event, later);
        assert!(!swaps(&actions), "{event:?}: {actions:?}");
        assert!(actions.contains(&Action::Note(Note::WasLate)), "{event:?} is told once");
        let (_, actions) = step(&state, Event::Read(answer), later + 1);
        assert!(!swaps(&actions) && !actions.contains(&Action::Note(Note::WasLate)), "and once only");
    }
    // Ticks that came in their time: the same silence is the leader's.
    let mut state = state;
    let mut asked = false;
    for now in (NOW..later).step_by(100) {
        let (next, actions) = step(&state, Event::Tick, now);
        state = next;
        asked |= swaps(&actions);
    }
    assert!(asked);
}

#[test]
fn a_lease_lasts_as_long_as_its_follower_has_promised() {
    let mut leader = leader();
    leader.setup.timing = Timing::NORMAL;
    let from_fast = |lasts| Heartbeat {
        grant: Some(Grant { process: 1, sent_at: NOW, lasts }),
        ..heartbeat(NodeId::B, Some(register(NodeId::A, Mode::Pair)))
    };
    let until = |lasts| heard(&leader, from_fast(lasts), NOW + 1).lease_until;
    assert_eq!(until(Timing::FAST.lease), NOW + Timing::FAST.lease - Timing::NORMAL.drift);
    assert_eq!(until(0), NOW, "one that says nothing promises nothing");
    assert!(!heard(&leader, from_fast(0), NOW + 1).may_read(NOW + 1));
    let follower = heard(&follower(), heartbeat(NodeId::A, Some(register(NodeId::A, Mode::Pair))), NOW);
    assert_eq!(follower.granted.unwrap().lasts, TIMING.lease);
    assert_eq!((follower.promised_until, follower.record.promises), (NOW + TIMING.lease, TIMING.lease));
    // A process that was started again under a shorter profile keeps to what the one before it may have promised.
    let record = Record { promises: Timing::WAN.lease, ..follower.record };
    let again = State::new(follower.setup, record, NOW);
    assert_eq!(again.promised_until, NOW + Timing::WAN.lease);
    let again = step(&again, Event::Tick, NOW).0;
    assert_eq!(again.phase, Phase::Follower);
    // And so does the one after that, though the first has given shorter ones.
    let leads = |now| Heartbeat { sent_at: now, ..heartbeat(NodeId::A, Some(register(NodeId::A, Mode::Pair))) };
    let again = heard(&again, leads(NOW + 1), NOW + 1);
    assert_eq!(again.granted.unwrap().lasts, TIMING.lease);
    let third = State::new(again.setup, again.record, NOW + 2);
    assert!(third.promised_until >= NOW + Timing::WAN.lease);
    let late = NOW + Timing::WAN.lease;
    assert_eq!(heard(&again, leads(late), late).record.promises, TIMING.lease, "it has come to its end");
}

#[test]
fn nobody_is_forced_out_who_is_heard_and_leads() {
    let led = heard(&follower(), heartbeat(NodeId::A, Some(register(NodeId::A, Mode::Pair))), NOW);
    let (next, actions) = step(&led, Event::Operator(Wish::AcceptDataLoss), NOW + 1);
    assert_eq!((next.record.seen, next.phase), (led.record.seen, Phase::Follower));
    assert!(!actions.contains(&Action::Note(Note::Forced)));
    // One that is there and can't lead may be passed over.
    let idle = Heartbeat { leading: false, ..heartbeat(NodeId::A, Some(register(NodeId::A, Mode::Pair))) };
    let (next, _) = step(&heard(&follower(), idle, NOW), Event::Operator(Wish::AcceptDataLoss), NOW + 1);
    assert!(next.is_owner() && next.phase == Phase::Leader);
}

#[test]
fn an_owner_that_cannot_start_asks_a_peer_that_has_received_nothing_for_long() {
    let mut owner = leader();
    (owner.opened, owner.postgres, owner.down_since) = (false, Postgres::Down, NOW);
    let cold = Heartbeat { ready: false, ..heartbeat(NodeId::B, Some(register(NodeId::A, Mode::Pair))) };
    (owner.granted_sent_at, owner.released_at) = (NOW, Some(NOW));
    owner = heard(&owner, cold, NOW);
    let mut asked = Vec::new();
    for now in (NOW..NOW + 10 * TIMING.handover).step_by(100) {
        let (next, actions) = step(&owner, Event::Tick, now);
        let sent = actions.iter().find_map(|action| if let Action::Send(sent) = action { Some(*sent) } else { None }).unwrap();
        assert!(!swaps(&actions), "SOLO would keep the peer from it: {now} {actions:?}");
        assert!(!sent.released || next.lease_until == 0, "what was granted before isn't used again");
        // It grants what it hears, as long as it isn't asked to take over.
        let grant = sent.leading.then_some(Grant { process: 1, sent_at: sent.sent_at, lasts: TIMING.lease });
        owner = heard(&next, Heartbeat { sent_at: now, grant, ..cold }, now);
        owner.answered_at = now;
        asked.extend(sent.released.then_some(now - NOW));
    }
    assert!(asked.last().is_some_and(|last| *last > 8 * TIMING.handover), "again and again: {asked:?}");
    assert!(asked.first().is_some_and(|first| *first >= 2 * TIMING.handover), "its own start comes first: {asked:?}");
    let mut standby = follower();
    (standby.streamed_at, standby.promised_until) = (None, 0);
    standby.postgres = Postgres::Standby { streaming: false, consistent: true, advanced: false };
    let asks = Heartbeat { leading: false, released: true, ..heartbeat(NodeId::A, Some(register(NodeId::A, Mode::Pair))) };
    let (_, actions) = step(&standby, Event::Heard(asks), NOW);
    assert!(swaps(&actions), "{actions:?}");
}

#[test]
fn an_owner_that_has_been_away_does_not_lead_on_the_word_of_a_peer_without_a_memory() {
    let mut owner = node(NodeId::A, register(NodeId::A, Mode::Pair));
    owner.answer = None;
    let newborn = heartbeat(NodeId::B, None);
    let waiting = heard(&owner, newborn, NOW);
    assert_eq!(waiting.phase, Phase::Boot);
    // Nor does that peer believe it before it leads, or they would confirm each other.
    let mut empty = follower();
    empty.phase = Phase::Boot;
    empty.record = Record { process: 1, ..Record::default() };
    empty.answer = None;
    let says = Heartbeat { leading: false, ..heartbeat(NodeId::A, owner.record.seen) };
    assert_eq!(heard(&empty, says, NOW).record.seen, None);
    assert_eq!(heard(&empty, heartbeat(NodeId::A, owner.record.seen), NOW).record.seen, owner.record.seen);
    // An owner whose disk was replaced does believe the one that followed it.
    let mut replaced = State { phase: Phase::Boot, ..empty };
    replaced.setup.me = NodeId::A;
    let follows = heartbeat(NodeId::B, owner.record.seen);
    assert_eq!(heard(&replaced, follows, NOW).record.seen, owner.record.seen);
    // With the operator's word, or the witness's, it does.
    let (forced, _) = step(&waiting, Event::Operator(Wish::AcceptDataLoss), NOW + 1);
    assert_eq!((forced.phase, forced.mode()), (Phase::Leader, Some(Mode::Solo)));
    let answer = Answer { instance: INSTANCE, value: owner.record.seen };
    assert_eq!(step(&waiting, Event::Read(answer), NOW + 1).0.phase, Phase::Leader);
}

#[test]
fn a_witness_that_is_behind_what_the_peer_tells_is_lost_only_if_it_stays_behind() {
    let newer = Register { version: 10, ..register(NodeId::A, Mode::Pair) };
    let mut owner = leader();
    let behind = owner.answer.unwrap();
    let confirms = |now| {
        let grant = Some(Grant { process: 1, sent_at: now, lasts: TIMING.lease });
        Heartbeat { sent_at: now, grant, ready: true, ..heartbeat(NodeId::B, Some(newer)) }
    };
    let mut proposed = None;
    for now in (NOW..NOW + 2 * TIMING.witness_lost).step_by(100) {
        owner = step(&owner, Event::Tick, now).0;
        owner = heard(&owner, confirms(now), now);
        owner = step(&owner, Event::Read(behind), now).0;
        proposed = proposed.or(owner.proposal.map(|_| now - NOW));
    }
    assert!(proposed.is_some_and(|after| after >= TIMING.witness_lost), "{proposed:?}");
    let mut owner = heard(&leader(), confirms(NOW), NOW);
    owner = step(&owner, Event::Read(Answer { instance: INSTANCE + 1, ..behind }), NOW).0;
    assert!(owner.proposal.is_some(), "another register is never waited for");
}

#[test]
fn a_process_that_has_just_started_is_told_at_once_what_there_is() {
    let sends = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Send(_)));
    let (known, actions) = step(&leader(), Event::Heard(heartbeat(NodeId::B, None)), NOW);
    assert!(sends(&actions), "it hasn't been heard before");
    let (_, actions) = step(&known, Event::Heard(Heartbeat { sent_at: 4_001, ..heartbeat(NodeId::B, None) }), NOW + 1);
    assert!(!sends(&actions), "its next one isn't news");
    let (_, actions) = step(&known, Event::Introduced, NOW + 1);
    assert!(sends(&actions));
}

#[test]
fn a_pause_is_told_when_it_begins_and_ends() {
    let (paused, actions) = step(&leader(), Event::Operator(Wish::Pause { until: NOW + 1_000 }), NOW);
    assert!(actions.contains(&Action::Note(Note::Paused)));
    let (ended, actions) = step(&paused, Event::Tick, NOW + 1_000);
    assert!(actions.contains(&Action::Note(Note::Resumed)) && ended.paused_until.is_none());
    let (_, actions) = step(&paused, Event::Operator(Wish::Resume), NOW + 1);
    assert!(actions.contains(&Action::Note(Note::Resumed)));
    assert!(step(&ended, Event::Operator(Wish::Resume), NOW + 1_001).1.is_empty(), "nothing was paused");
}

#[test]
fn every_profile_lets_a_lease_end_before_a_takeover_and_a_lost_peer_be_noticed_before_that() {
    for timing in [Timing::FAST, Timing::NORMAL, Timing::WAN] {
        let Timing { heartbeat, lease, drift, solo_after, takeover_after, .. } = timing;
        assert!(lease + heartbeat <= takeover_after, "a follower waits for its promise and a heartbeat more: {timing:?}");
        assert!(drift * 100 >= lease, "clocks that differ by a hundredth: {timing:?}");
        assert!(
            solo_after + heartbeat < lease - drift,
            "a leader that can go on alone does, before it stops reading: {timing:?}"
        );
        assert!(3 * heartbeat < solo_after, "one lost heartbeat or two are nothing: {timing:?}");
    }
}

fn told(state: &State) -> NodeStatus {
    NodeStatus::of(state, "edge", Details::default(), None, Takeovers::default(), NOW + 1)
}

fn survives(state: &State) -> (bool, bool, bool) {
    let Survives { a, b, witness, .. } = told(state).survives;
    (a, b, witness)
}

#[test]
fn what_the_pair_survives_counts_what_both_nodes_see() {
    let seen = Some(register(NodeId::A, Mode::Pair));
    let from = |node, change: fn(&mut Heartbeat)| {
        let mut heartbeat = heartbeat(node, seen);
        change(&mut heartbeat);
        heartbeat
    };
    let mut owner = leader();
    owner.lease_until = NOW + 500;
    let with = |owner: &State, change| survives(&heard(owner, from(NodeId::B, change), NOW));
    let a = |change| with(&owner, change);
    assert_eq!(a(|_| {}), (true, true, true));
    assert_eq!(a(|peer| peer.hears_witness = false), (false, true, true), "B couldn't take over");
    assert_eq!(a(|peer| peer.paused = true), (false, true, true));
    assert_eq!(a(|peer| peer.ready = false), (false, true, false));
    let deaf = State { answer: None, ..owner };
    assert_eq!(with(&deaf, |_| {}), (true, false, true), "A couldn't go on alone");
    assert_eq!(with(&deaf, |peer| peer.hears_witness = false), (false, false, true));
    let b = |change| survives(&heard(&follower(), from(NodeId::A, change), NOW));
    assert_eq!(b(|_| {}), (true, true, true), "the follower tells the same");
    assert_eq!(b(|peer| peer.hears_witness = false), (true, false, true));
    assert_eq!(b(|peer| peer.paused = true), (false, true, true));
}

#[test]
fn a_follower_that_does_not_take_over_says_what_keeps_it_from_it() {
    let mut state = follower();
    state.forgiven_at = NOW - 10_000;
    state.ticked_at = NOW;
    let says = |state: &State| told(state).explanation;
    assert!(says(&state).contains("promise has run out and the witness agrees"), "{}", says(&state));
    state.answer = None;
    assert!(says(&state).contains("Neither the leader nor the witness"), "{}", says(&state));
    state.advanced_at = Some(NOW);
    assert!(says(&state).contains("what it writes arrives"), "{}", says(&state));
    (state.advanced_at, state.took_over_at) = (None, Some(NOW - 1_000));
    assert!(says(&state).contains("since the last time"), "{}", says(&state));
    state.paused_until = Some(NOW + 1_000);
    assert!(says(&state).contains("duet resume"), "{}", says(&state));
    let mut owner = node(NodeId::A, register(NodeId::A, Mode::Pair));
    owner.record.complete = false;
    assert!(says(&owner).contains("is asked to take over"), "{}", says(&owner));
    owner.record.seen = Some(register(NodeId::A, Mode::Solo));
    assert!(says(&owner).contains("duet failover --accept-data-loss"), "{}", says(&owner));
    let paused = step(&leader(), Event::Operator(Wish::Pause { until: NOW + 1_000 }), NOW).0;
    assert!(says(&paused).contains("Failover is paused"), "{}", says(&paused));
}

#[test]
fn a_takeover_that_is_refused_again_and_again_is_told_from_time_to_time() {
    let mut standby = follower();
    let asks = Heartbeat { leading: false, released: true, ..heartbeat(NodeId::A, Some(register(NodeId::A, Mode::Pair))) };
    let (mut asked, mut told) = (0, 0);
    for now in (NOW..NOW + TIMING.backoff).step_by(100) {
        let (next, actions) = step(&standby, Event::Heard(Heartbeat { sent_at: now, ..asks }), now);
        asked += usize::from(swaps(&actions));
        told += usize::from(actions.contains(&Action::Note(Note::TakesOver)));
        standby = State { pending: None, ticked_at: now, ..next };
    }
    assert!(asked > 10 && told == 1, "asked {asked} times, told {told} times");
}
