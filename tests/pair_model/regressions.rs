//! What reviews and simulations found in the state machine, one test for each: the shortest story that shows it.

use duet::supervisor::fsm::{Event, Mode, Phase, Postgres, SwapOutcome, Sync, Third, step};

use super::NONE;
use super::world::{Budget, EVEN, Happening, World};
use Happening::{
    Crash, CutOneWay, CutPair, CutWitness, Heal, Keep, KeptArrives, Leave, Move, PostgresCrash, Rebuild, Restart, SwapArrives,
    Tick, Write,
};

const PLENTY: Budget = Budget {
    writes: 9,
    crashes: 9,
    postgres_crashes: 9,
    cuts: 9,
    pauses: 9,
    rebuilds: 9,
    replaced: 9,
    wishes: 9,
    late: 9,
    versions: 100,
    ticks: 100,
    ..NONE
};

fn steady(mode: Mode, third: Third) -> World {
    World::steady(mode, third, EVEN, PLENTY, None)
}

/// What changes nothing is passed over.
fn after(world: World, story: &[Happening]) -> World {
    let world = story.iter().fold(world, |world, happening| world.after(*happening).unwrap_or(world));
    assert_eq!(world.broken, None, "{story:?}");
    world
}

/// The first request of this node's that is under way.
fn request_of(world: &World, node: usize) -> usize {
    let found = world.swaps.iter().position(|swap| swap.from == node);
    found.unwrap_or_else(|| panic!("{node} has asked for something: {world:?}"))
}

/// B doesn't hear A, and asks to take over.
const B_ASKS: &[Happening] = &[CutOneWay(1), Tick, Tick, Tick, Tick];

/// A follower asked to take over and crashed, and its next process threw its copy away; then the request arrived, and the owner had no data.
#[test]
fn a_forgotten_takeover_that_arrives_while_the_copy_is_made_anew_is_given_back() {
    let world = after(steady(Mode::Pair, Third::Witness), B_ASKS);
    let world = after(world, &[Crash(1), Restart(1), Heal, Move(1), Tick, Tick, Rebuild(1)]);
    assert!(!world.nodes[1].disk.complete, "the copy is made anew");
    let late = request_of(&world, 1);
    let world = after(world, &[SwapArrives(late, true)]);
    assert!(world.witness.value.is_some_and(|value| value.owner == world.nodes[1].state.me()), "it was granted");
    let world = after(world, &[Tick, Tick]);
    let [a, b] = &world.nodes;
    assert!(a.state.is_owner() && a.state.phase == Phase::Leader, "{a:?}");
    assert!(!b.state.is_owner() && b.state.phase == Phase::Follower, "{b:?}");
}

/// A copy was thrown away while a request to take over was under way.
#[test]
fn no_copy_is_thrown_away_while_its_node_may_become_the_owner() {
    let world = after(after(steady(Mode::Pair, Third::Witness), B_ASKS), &[Heal, Tick, Rebuild(1)]);
    assert!(world.nodes[1].state.pending.is_some() && world.nodes[1].disk.complete, "{:?}", world.nodes[1]);
}

/// A takeover and an agreement had the same version, which left each node sure that the other owned; and a takeover that had been forgotten
/// was newer than a later agreement.
#[test]
fn an_agreement_is_newer_than_a_takeover_however_often_that_was_asked_for() {
    let world = after(after(steady(Mode::Pair, Third::Witness), B_ASKS), &[Crash(1), Restart(1), Tick, Move(1)]);
    let world = after(world, &[Tick; 6]);
    let takeovers: Vec<u64> = world.swaps.iter().filter(|swap| swap.from == 1).map(|swap| swap.new.version).collect();
    assert_eq!(takeovers, [2, 2], "asked for by both processes, for the version after the one that it replaces");
    // Neither knows of that any more, nor of what the owner has asked for meanwhile.
    let world = after(world, &[Crash(0), Crash(1), Restart(0), Restart(1), Heal, CutWitness(0), CutWitness(1)]);
    let world = after(world, &[Tick, Move(0), Move(1), Move(1), Tick, Move(1), Tick, Tick, Tick, Tick]);
    for node in &world.nodes {
        let seen = node.disk.seen.unwrap_or_else(|| panic!("{node:?}"));
        assert!(seen.mode == Mode::Asym && seen.version > 2, "{seen:?}");
    }
    let late = request_of(&world, 1);
    let world = after(world, &[SwapArrives(late, true), Heal, Tick, Tick, Tick]);
    assert!(world.nodes[0].state.is_owner() && !world.nodes[1].state.is_owner(), "it comes too late: {:?}", world.nodes);
}

/// PAIR was asked for on a confirmation from before `synchronous_standby_names` was cleared.
#[test]
fn what_was_confirmed_before_the_peer_was_given_up_counts_for_nothing() {
    let world = after(steady(Mode::Pair, Third::Witness), &[CutPair, Tick, Tick, SwapArrives(0, true)]);
    let alone = world.nodes[0].state;
    assert_eq!(alone.postgres, Postgres::Primary(Sync::Off { caught_up: false }), "nothing is confirmed any more");
    // PostgreSQL hasn't got to its goal, so nothing is reported; the peer is back.
    let world = after(world, &[Heal]);
    let peer = world.nodes[1].state.peer.map(|peer| peer.heartbeat);
    assert!(peer.is_some(), "{:?}", world.nodes[1]);
    let world = after(world, &[Tick]);
    assert!(world.swaps.iter().all(|swap| swap.new.mode != Mode::Pair), "{:?}", world.swaps);
    assert_eq!(world.nodes[0].disk.intent, None);
}

/// There was no agreement while a takeover waited for a witness that nobody heard.
#[test]
fn a_follower_that_waits_for_a_lost_witness_agrees_to_asym() {
    let world = after(steady(Mode::Pair, Third::Witness), &[CutWitness(0), CutWitness(1)]);
    let mut world = after(world, B_ASKS);
    assert!(world.nodes[1].state.pending.is_some(), "{:?}", world.nodes[1]);
    world.cuts.to = [false; 2];
    let world = after(world, &[Tick, Tick, Tick, Tick]);
    assert!(world.nodes.iter().all(|node| node.disk.seen.is_some_and(|seen| seen.mode == Mode::Asym)), "{:?}", world.nodes);
}

/// An owner whose PostgreSQL had ended cancelled its own request to take over, and went on using the leases from before it.
#[test]
fn an_owner_whose_postgresql_ended_asks_until_it_is_answered_and_uses_no_lease() {
    let world = after(steady(Mode::Pair, Third::Witness), &[Tick, Keep(1), PostgresCrash(0)]);
    assert_eq!(world.nodes[0].state.lease_until, 0);
    let world = after(world, &[KeptArrives]);
    assert_eq!(world.nodes[0].state.lease_until, 0, "what was granted before is void");
    let world = after(world, &[Move(0), Tick]);
    let asked = request_of(&world, 1);
    let world = after(world, &[SwapArrives(asked, true), Move(1), Tick]);
    assert!(world.nodes[1].state.is_owner() && world.nodes[1].state.phase == Phase::Leader, "{:?}", world.nodes[1]);
}

/// A node with a new disk began to count its processes anew, and its messages were taken for old ones.
#[test]
fn a_node_with_a_new_disk_is_heard_and_copies_everything() {
    let world = after(steady(Mode::Pair, Third::Witness), &[Write(0), Happening::Replace(1), Restart(1)]);
    let process = world.nodes[1].disk.process;
    // The copy is begun, and becomes whole.
    let world = after(world, &[Tick, Move(1), Move(1), Move(1), Tick]);
    assert_eq!(world.nodes[0].state.peer.map(|peer| peer.heartbeat.process), Some(process));
    assert!(world.nodes[1].disk.complete && world.is_replicated(0), "{:?}", world.nodes);
}

/// An owner with a new disk gave its store to a stale peer.
#[test]
fn an_owner_that_has_lost_its_disk_alone_gives_nothing_to_a_stale_peer() {
    let alone: &[Happening] = &[CutPair, Tick, Tick];
    for (mode, third) in [(Mode::Pair, Third::Witness), (Mode::Asym, Third::Nobody)] {
        let mut world = after(steady(mode, third), alone);
        if third == Third::Witness {
            world = after(world, &[SwapArrives(0, true)]);
        }
        world = after(world, &[Move(0), Write(0)]);
        assert!(world.known.len() == 1 && world.nodes[1].wal.is_empty(), "A has what B hasn't: {world:?}");
        world.lose_disk(0);
        world = after(world, &[Heal, Restart(0)]);
        for _ in 0..10 {
            world = after(world, &[Tick, Move(0), Move(1)]);
            if !world.swaps.is_empty() {
                world = after(world, &[SwapArrives(0, true)]);
            }
        }
        assert!(world.nodes.iter().all(|node| node.shown.is_none()), "only the operator can say that the write may be lost");
    }
}

/// An owner lost its disk, and came back before its peer had taken over, which hadn't streamed for a while: that one heard it, so it didn't
/// take over, and was never asked to. Found by the simulation.
#[test]
fn an_owner_that_has_lost_its_disk_asks_a_peer_that_is_not_warm() {
    let world = after(steady(Mode::Pair, Third::Witness), &[Write(0), Happening::Replace(0), Crash(1), Restart(1), Restart(0)]);
    let world = after(world, &[Tick, Move(1), Tick, Tick]);
    let asked = request_of(&world, 1);
    let world = after(world, &[SwapArrives(asked, true), Move(1)]);
    assert!(world.nodes[1].shown == Some(1), "B leads with everything: {:?}", world.nodes[1]);
    // The other one follows by a copy.
    let world = after(world, &[Tick, Move(0), Move(0), Move(0), Tick]);
    assert!(world.nodes[0].disk.complete && world.is_replicated(1), "{:?}", world.nodes);
}

/// A follower that was asked to take over, and refused by the witness, asked again as fast as that answered. Found by the simulation.
#[test]
fn a_takeover_that_was_refused_is_not_asked_for_again_at_once() {
    let world = after(steady(Mode::Pair, Third::Witness), &[Tick, PostgresCrash(0), Move(0), Tick]);
    let asked = request_of(&world, 1);
    let new = world.swaps[asked].new;
    let mut refused = world.witness;
    refused.instance += 1;
    let refusal = Event::Swapped { new, outcome: SwapOutcome::Refused(refused) };
    let (state, actions) = step(&world.nodes[1].state, refusal, world.clock(1));
    assert!(state.pending.is_none(), "{actions:?}");
}

/// The success of one command to put the peer's machine off was taken for that of another.
#[test]
fn the_success_of_a_command_that_counts_for_nothing_is_not_taken_for_another_s() {
    let world = after(steady(Mode::Pair, Third::Fence { delay: 1 }), &[CutOneWay(1), Tick, Tick, Tick, Tick, Tick]);
    let first = world.nodes[1].state.pending.unwrap_or_else(|| panic!("{:?}", world.nodes[1]));
    // The peer is heard, and then not: another command.
    let world = after(after(world, &[Heal, Tick]), &[CutOneWay(1), Tick, Tick, Tick, Tick, Tick]);
    let second = world.nodes[1].state.pending.unwrap_or_else(|| panic!("{:?}", world.nodes[1]));
    assert_ne!(first.instance, second.instance);
    let told = |instance| {
        let event = Event::Swapped { new: second.new, outcome: SwapOutcome::Applied { instance } };
        step(&world.nodes[1].state, event, world.clock(1)).0.is_owner()
    };
    assert!(!told(first.instance) && told(second.instance), "{first:?} {second:?}");
}

/// A follower that was stopped on purpose had its machine put off.
#[test]
fn a_follower_that_says_that_it_leaves_is_not_put_off() {
    let world = after(steady(Mode::Pair, Third::Fence { delay: 1 }), &[Leave(1), Crash(1)]);
    let world = after(world, &[Tick; 6]);
    assert!(world.swaps.is_empty() && world.nodes[0].state.mode() == Some(Mode::Solo), "{world:?}");
}
