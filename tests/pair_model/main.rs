//! The pair's state machine in every order of events, within bounds: whatever crashes, is cut off, paused, restored or handed over,
//! nothing acknowledged is lost, no read is stale, no two nodes acknowledge. Breaking any of the rules must be noticed.
//!
//! `DUET_MODEL_STATES` sets how many states each exploration visits at most.

mod regressions;
mod walks;
mod world;

use duet::supervisor::fsm::{Mode, Third};
use stateright::{Checker, Model, Property};
use world::{APART, Budget, Clocks, EVEN, Happening, Mutation, UNDURABLE, World};

struct Pair {
    mode: Mode,
    third: Third,
    clocks: Clocks,
    budget: Budget,
    mutation: Option<Mutation>,
    /// What an exploration must come past, so that it is known to show something.
    reaches: fn(&World) -> bool,
    /// What has happened when the exploration begins.
    prefix: &'static [Happening],
}

impl Pair {
    fn begin(&self) -> World {
        let steady = World::steady(self.mode, self.third, self.clocks, self.budget, self.mutation);
        self.prefix.iter().fold(steady, |world, happening| {
            world.after(*happening).unwrap_or_else(|| panic!("{happening:?} changes nothing in {world:?}"))
        })
    }
}

impl Model for Pair {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        vec![self.begin()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Happening>) {
        actions.extend(world.happenings());
    }

    fn next_state(&self, world: &World, happening: Happening) -> Option<World> {
        world.after(happening)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always(RULES, |_, world| world.broken.is_none()),
            Property::<Self>::sometimes(REACHED, |pair, world| (pair.reaches)(world)),
        ]
    }
}

const RULES: &str = "nothing acknowledged or shown is lost, no epoch that has ended acknowledges, and none has two writers";

const REACHED: &str = "the exploration comes past what it is about";

const NONE: Budget = Budget {
    writes: 1,
    crashes: 0,
    torn: 0,
    replaced: 0,
    postgres_crashes: 0,
    cuts: 0,
    lost_answers: 0,
    pauses: 0,
    restores: 0,
    switchovers: 0,
    rebuilds: 0,
    wishes: 0,
    late: 0,
    disks: 0,
    versions: 5,
    ticks: 8,
};

const PAIR: Pair =
    Pair { mode: Mode::Pair, third: Third::Witness, clocks: EVEN, budget: NONE, mutation: None, reaches: |_| true, prefix: &[] };

fn states_max() -> usize {
    std::env::var("DUET_MODEL_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// What was found, and how many states were looked at.
fn explore(pair: Pair, states_max: usize) -> (Option<String>, usize) {
    let what = format!("{:?} {:?} {:?} {:?}", pair.mode, pair.third, pair.budget, pair.mutation);
    let checker = pair.checker().threads(2).target_state_count(states_max).spawn_bfs().join();
    let found = checker.discovery(RULES).map(|path| {
        let last = path.last_state().broken.unwrap_or("?");
        let steps: Vec<String> = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
        format!("{last}: {}", steps.join(", "))
    });
    assert!(found.is_some() || checker.discovery(REACHED).is_some(), "{what}: it never came past what it is about");
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{what}: {states} states, depth {depth}: {}", found.as_deref().unwrap_or("holds"));
    (found, checker.state_count())
}

fn assert_holds(pair: Pair) {
    assert_eq!(explore(pair, states_max()).0, None);
}

/// The same world without the mutation must hold: it is the mutation that is noticed, and by what it does to data.
fn assert_noticed(mutation: Mutation, pair: Pair) {
    let Pair { mode, third, clocks, budget, reaches, prefix, .. } = pair;
    let (found, states) = explore(Pair { mutation: Some(mutation), ..pair }, states_max());
    let found = found.unwrap_or_else(|| panic!("{mutation:?} went unnoticed"));
    assert_eq!(found.starts_with(UNDURABLE), mutation == Mutation::PersistsLast, "{mutation:?}: {found}");
    assert_eq!(explore(Pair { mode, third, clocks, budget, reaches, prefix, mutation: None }, 2 * states).0, None);
}

#[test]
fn crashes_lose_nothing() {
    assert_holds(Pair { budget: Budget { writes: 2, crashes: 2, ..NONE }, reaches: walks::has_taken_over, ..PAIR });
}

/// Two of everything, and five versions of the register. Exhaustive only with far more states than are looked at by default.
#[test]
fn two_writes_two_crashes_and_two_partitions_lose_nothing() {
    use Happening::*;
    let budget = Budget { writes: 2, crashes: 2, cuts: 2, ..NONE };
    assert_holds(Pair { budget, reaches: walks::is_alone, ..PAIR });
    // From the other side of a failover: A was lost, and B leads.
    let prefix = &[Write(0), Crash(0), Tick, Tick, Tick, Tick, SwapArrives(0, true), Move(1), Restart(0), Tick, Move(0), Move(0)];
    let budget = Budget { crashes: 3, ticks: 16, ..budget };
    assert_holds(Pair { budget, prefix, reaches: walks::is_pair_again, ..PAIR });
}

#[test]
fn crashes_in_the_midst_of_a_step_lose_nothing() {
    assert_holds(Pair { budget: Budget { torn: 2, cuts: 1, ..NONE }, ..PAIR });
    assert_holds(Pair { mode: Mode::Solo, budget: Budget { torn: 1, crashes: 1, ticks: 10, ..NONE }, ..PAIR });
}

#[test]
fn replaced_disks_lose_nothing() {
    assert_holds(Pair { budget: Budget { replaced: 1, cuts: 1, lost_answers: 1, ..NONE }, ..PAIR });
    assert_holds(Pair { mode: Mode::Asym, budget: Budget { replaced: 1, crashes: 1, cuts: 1, ..NONE }, ..PAIR });
    assert_holds(Pair { budget: Budget { replaced: 1, crashes: 1, cuts: 1, ..FENCED.budget }, ..FENCED });
}

#[test]
fn a_record_that_is_made_durable_late_is_noticed() {
    assert_noticed(Mutation::PersistsLast, Pair { budget: Budget { crashes: 1, ..NONE }, ..PAIR });
}

#[test]
fn partitions_lose_nothing() {
    assert_holds(Pair { budget: Budget { writes: 2, cuts: 2, lost_answers: 1, ..NONE }, reaches: walks::is_alone, ..PAIR });
}

#[test]
fn a_partition_and_a_crash_lose_nothing() {
    assert_holds(Pair { budget: Budget { crashes: 1, cuts: 1, lost_answers: 1, ..NONE }, ..PAIR });
}

#[test]
fn pauses_make_no_read_stale() {
    assert_holds(Pair { budget: Budget { pauses: 1, crashes: 1, ticks: 10, ..NONE }, ..PAIR });
}

#[test]
fn crashes_of_postgresql_lose_nothing() {
    assert_holds(Pair { budget: Budget { postgres_crashes: 2, cuts: 1, ..NONE }, ..PAIR });
}

#[test]
fn a_restored_witness_makes_no_second_owner() {
    assert_holds(Pair { budget: Budget { restores: 1, crashes: 2, ticks: 10, ..NONE }, ..PAIR });
}

#[test]
fn switchovers_lose_nothing() {
    assert_holds(Pair { budget: Budget { switchovers: 1, crashes: 1, cuts: 1, ..NONE }, ..PAIR });
}

#[test]
fn maintenance_and_pauses_of_failover_lose_nothing() {
    assert_holds(Pair { budget: Budget { wishes: 2, cuts: 1, crashes: 1, ..NONE }, ..PAIR });
    assert_holds(Pair { budget: Budget { wishes: 2, switchovers: 1, postgres_crashes: 1, ..NONE }, ..PAIR });
    assert_holds(Pair { mode: Mode::Asym, budget: Budget { wishes: 2, crashes: 1, ..NONE }, ..PAIR });
}

#[test]
fn disks_that_are_full_or_stand_still_lose_nothing() {
    assert_holds(Pair { budget: Budget { disks: 2, crashes: 1, cuts: 1, ..NONE }, ..PAIR });
    assert_holds(Pair { budget: Budget { disks: 2, postgres_crashes: 1, lost_answers: 1, cuts: 1, ..NONE }, ..PAIR });
    assert_holds(Pair { mode: Mode::Asym, budget: Budget { disks: 2, crashes: 1, ..NONE }, ..PAIR });
}

#[test]
fn a_copy_made_anew_loses_nothing() {
    assert_holds(Pair { budget: Budget { rebuilds: 1, crashes: 1, cuts: 1, ..NONE }, ..PAIR });
}

#[test]
fn late_heartbeats_lose_nothing() {
    assert_holds(Pair { budget: Budget { late: 2, cuts: 2, ..NONE }, ..PAIR });
    assert_holds(Pair { budget: Budget { late: 1, crashes: 1, cuts: 1, lost_answers: 1, ..NONE }, ..PAIR });
}

#[test]
fn pairing_loses_nothing() {
    assert_holds(Pair { mode: Mode::Solo, budget: Budget { crashes: 1, cuts: 1, lost_answers: 1, ticks: 10, ..NONE }, ..PAIR });
}

#[test]
fn without_a_witness_only_the_owner_goes_on() {
    assert_holds(Pair { mode: Mode::Asym, budget: Budget { crashes: 2, cuts: 1, ticks: 10, ..NONE }, ..PAIR });
}

#[test]
fn clearing_the_setting_before_solo_holds_is_noticed() {
    assert_noticed(Mutation::ClearsBeforeSolo, Pair { budget: Budget { cuts: 1, lost_answers: 1, ..NONE }, ..PAIR });
}

#[test]
fn going_on_alone_after_pair_was_asked_for_is_noticed() {
    use Happening::*;
    // PAIR is asked for and under way for long; the peer is cut off.
    let prefix = &[Tick, CutPair];
    let budget = Budget { cuts: 1, ticks: 12, ..NONE };
    assert_noticed(Mutation::ForgetsPair, Pair { mode: Mode::Asym, budget, prefix, ..PAIR });
}

#[test]
fn reading_without_a_lease_is_noticed() {
    assert_noticed(
        Mutation::ReadsWithoutLease,
        Pair { budget: Budget { cuts: 2, ..NONE }, prefix: &[Happening::CutPair], ..PAIR },
    );
}

#[test]
fn acknowledging_a_cancelled_wait_is_noticed() {
    let budget = Budget { crashes: 1, cuts: 1, ..NONE };
    assert_noticed(Mutation::AcknowledgesCancelled, Pair { budget, prefix: &[Happening::CutPair], ..PAIR });
}

#[test]
fn granting_while_taking_over_is_noticed() {
    use Happening::*;
    // The follower has asked to take over; then it hears the leader again, and then it doesn't.
    let prefix = &[CutOneWay(1), Tick, Tick, Tick, Tick, Heal, Tick, CutPair];
    assert_noticed(Mutation::GrantsWhileTakingOver, Pair { budget: Budget { cuts: 2, ..NONE }, prefix, ..PAIR });
}

#[test]
fn a_witness_that_hides_its_restore_is_noticed() {
    use Happening::*;
    // A goes alone; then it is lost, and the witness says what it said before.
    let prefix = &[CutPair, Tick, Tick, SwapArrives(0, true), Move(0)];
    let budget = Budget { cuts: 1, crashes: 1, restores: 1, ticks: 10, ..NONE };
    assert_noticed(Mutation::HidesRestore, Pair { budget, prefix, ..PAIR });
}

#[test]
fn opening_before_the_peer_has_confirmed_is_noticed() {
    use Happening::*;
    // A write that the peer hasn't got yet is in a PostgreSQL that is started again, while the peer can't take over but grants leases.
    let prefix = &[CutPair, Write(0), PostgresCrash(0), Tick, Tick, Tick, Heal, Move(0), Tick];
    let budget = Budget { postgres_crashes: 1, cuts: 2, ticks: 10, ..NONE };
    assert_noticed(Mutation::OpensUnconfirmed, Pair { budget, prefix, ..PAIR });
}

#[test]
fn promoting_a_copy_that_is_not_whole_is_noticed() {
    assert_noticed(Mutation::PromotesIncomplete, Pair { budget: Budget { rebuilds: 1, crashes: 1, ..NONE }, ..PAIR });
}

#[test]
fn forgetting_that_asym_was_agreed_is_noticed() {
    let budget = Budget { crashes: 1, cuts: 1, ticks: 12, ..NONE };
    use Happening::*;
    let prefix = &[CutWitness(0), Crash(1), Restart(1), CutOneWay(1)];
    assert_noticed(Mutation::ForgetsAsym, Pair { mode: Mode::Asym, budget: Budget { cuts: 2, ..budget }, prefix, ..PAIR });
}

#[test]
fn a_lease_that_does_not_allow_for_drift_is_noticed() {
    assert_noticed(Mutation::IgnoresDrift, Pair { clocks: APART, budget: Budget { cuts: 1, ..NONE }, ..PAIR });
}

#[test]
fn a_lease_that_is_counted_from_its_receipt_is_noticed() {
    use Happening::*;
    // What B grants doesn't arrive at first; then B doesn't hear A any more.
    let prefix = &[CutOneWay(0), Tick, Keep(1), CutPair];
    let budget = Budget { cuts: 2, late: 1, ..NONE };
    assert_noticed(Mutation::CountsFromReceipt, Pair { budget, prefix, ..PAIR });
}

#[test]
fn asking_for_pair_before_the_peer_has_confirmed_is_noticed() {
    use Happening::*;
    // A goes alone; B is back and has everything, and is to be waited for. But A writes once more.
    let prefix = &[CutPair, Tick, Tick, SwapArrives(0, true), Move(0), Heal, Tick, CutPair, Write(0)];
    let budget = Budget { cuts: 2, crashes: 1, ticks: 12, ..NONE };
    assert_noticed(Mutation::PairsUnconfirmed, Pair { budget, prefix, ..PAIR });
}

#[test]
fn leading_before_the_takeover_is_confirmed_is_noticed() {
    assert_noticed(Mutation::PromotesUnconfirmed, Pair { budget: Budget { cuts: 1, ..NONE }, ..PAIR });
}

#[test]
fn opening_before_the_own_promise_has_run_out_is_noticed() {
    use Happening::*;
    // B asks to take over and forgets that; it promises A a lease again; then it is granted what it asked for.
    let prefix = &[
        CutOneWay(1),
        Tick,
        Tick,
        Tick,
        Tick,
        Crash(1),
        Restart(1),
        Heal,
        Tick,
        Tick,
        SwapArrives(1, true),
        CutPair,
        CutWitness(0),
    ];
    let budget = Budget { cuts: 3, crashes: 1, ..NONE };
    assert_noticed(Mutation::OpensBeforePromiseEnds, Pair { budget, prefix, ..PAIR });
}

#[test]
fn leading_on_after_the_other_one_took_over_is_noticed() {
    use Happening::*;
    // B takes over from A, which is cut off.
    let prefix = &[CutPair, CutWitness(0), Tick, Tick, Tick, Tick];
    let budget = Budget { writes: 2, cuts: 2, ..NONE };
    assert_noticed(Mutation::LeadsOn, Pair { budget, prefix, ..PAIR });
}

#[test]
fn two_writers_in_one_epoch_are_noticed() {
    use Happening::*;
    // A has acknowledged, and is lost: B takes over without an epoch of its own.
    let prefix = &[Write(0), Crash(0), Tick, Tick, Tick, Tick, SwapArrives(0, true), Move(1)];
    assert_noticed(Mutation::KeepsEpoch, Pair { budget: Budget { writes: 2, crashes: 1, ..NONE }, prefix, ..PAIR });
}

/// With a fencing device in the place of the witness; the follower waits a tick longer than the leader.
const FENCED: Pair = Pair { third: Third::Fence { delay: 1 }, budget: Budget { versions: 20, ..NONE }, ..PAIR };

#[test]
fn with_a_fencing_device_crashes_and_partitions_lose_nothing() {
    assert_holds(Pair { budget: Budget { crashes: 1, cuts: 1, ticks: 12, ..FENCED.budget }, ..FENCED });
    assert_holds(Pair { budget: Budget { writes: 2, cuts: 2, lost_answers: 1, ticks: 12, ..FENCED.budget }, ..FENCED });
    assert_holds(Pair { budget: Budget { postgres_crashes: 2, cuts: 1, ticks: 10, ..FENCED.budget }, ..FENCED });
}

#[test]
fn with_a_fencing_device_pauses_switchovers_and_copies_made_anew_lose_nothing() {
    assert_holds(Pair { budget: Budget { pauses: 1, crashes: 1, ticks: 12, ..FENCED.budget }, ..FENCED });
    assert_holds(Pair { budget: Budget { switchovers: 1, crashes: 1, cuts: 1, ..FENCED.budget }, ..FENCED });
    assert_holds(Pair { budget: Budget { rebuilds: 1, crashes: 1, cuts: 1, ..FENCED.budget }, ..FENCED });
    assert_holds(Pair { budget: Budget { wishes: 2, disks: 1, cuts: 1, ..FENCED.budget }, ..FENCED });
    assert_holds(Pair { budget: Budget { wishes: 1, switchovers: 1, cuts: 1, ..FENCED.budget }, ..FENCED });
}

#[test]
fn with_a_fencing_device_pairing_loses_nothing() {
    let budget = Budget { crashes: 1, cuts: 1, lost_answers: 1, ticks: 12, ..FENCED.budget };
    assert_holds(Pair { mode: Mode::Solo, budget, ..FENCED });
    assert_holds(Pair { mode: Mode::Asym, budget, ..FENCED });
}

#[test]
fn putting_a_peer_off_that_has_not_heard_this_process_is_noticed() {
    use Happening::*;
    // The leader has the follower put off and goes on alone; the follower comes back, and hears nobody.
    let prefix = &[
        CutPair,
        Tick,
        Tick,
        SwapArrives(0, true),
        SwapArrives(0, true),
        Move(0),
        Write(0),
        Restart(1),
        Tick,
        Move(1),
        Tick,
        Tick,
        Tick,
        Tick,
    ];
    let budget = Budget { cuts: 1, ticks: 16, ..FENCED.budget };
    assert_noticed(Mutation::FencesUnheard, Pair { budget, prefix, ..FENCED });
}

#[test]
fn believing_that_a_peer_is_off_that_was_heard_since_is_noticed() {
    use Happening::*;
    // The follower has a lost leader put off, and isn't told for long; the leader comes back and is in step, and they are cut off from
    // each other.
    let prefix = &[
        Crash(0),
        Tick,
        Tick,
        Tick,
        Tick,
        Tick,
        SwapArrives(0, true),
        Restart(0),
        Tick,
        Move(0),
        Move(1),
        Tick,
        CutPair,
        SwapArrives(0, true),
        Tick,
        Tick,
    ];
    let budget = Budget { crashes: 1, cuts: 1, ticks: 18, ..FENCED.budget };
    assert_noticed(Mutation::BelievesLateFence, Pair { budget, prefix, ..FENCED });
}

#[test]
fn an_operator_s_decision_holds_against_whatever_its_former_owner_decided_alone() {
    use Happening::*;
    for (mode, third) in [(Mode::Pair, Third::Fence { delay: 1 }), (Mode::Asym, Third::Nobody)] {
        // A goes on alone and is lost; B, which knows nothing of that, is made the owner.
        let alone: &[Happening] = if mode == Mode::Pair { &[SwapArrives(0, true), SwapArrives(0, true)] } else { &[Crash(1)] };
        let steps = [CutPair, Tick, Tick].iter().chain(alone).chain(&[Tick, Tick, Crash(0), Restart(1), Tick, Force(1), Tick]);
        let budget = Budget { crashes: 2, cuts: 1, ticks: 20, ..FENCED.budget };
        let forced =
            steps.fold(World::steady(mode, third, EVEN, budget, None), |world, step| world.after(*step).unwrap_or(world));
        assert!(forced.nodes[0].state.may_be_alone() && forced.nodes[1].state.is_owner(), "{mode:?} {third:?}: {forced:?}");
        let back = [Heal, Restart(0), Tick, Tick, Tick];
        let world = back.iter().fold(forced, |world, step| world.after(*step).unwrap_or(world));
        let [a, b] = &world.nodes;
        assert_eq!(a.state.record.seen, b.state.record.seen, "{mode:?} {third:?}");
        assert!(b.state.is_owner() && !a.state.is_owner(), "{mode:?} {third:?}: the former owner follows");
    }
}
