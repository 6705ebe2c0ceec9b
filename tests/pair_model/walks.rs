//! Long random walks: breadth first is too wide to get past the first failover, these get past several. One seed is one walk.

use duet::supervisor::fsm::{Mode, NodeId, Phase};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::world::{APART, Budget, Happening, Mutation, UNDURABLE, World};
use super::{FENCED, NONE, PAIR, Pair, states_max};

/// How many walks came past what.
#[derive(Debug, Default)]
pub struct Reached {
    /// The first owner went on alone.
    pub alone: u64,
    /// The other node answered requests in an epoch of its own.
    pub took_over: u64,
    /// Both were in step again after that.
    pub pair_again: u64,
    /// The first owner has its ownership back, and answers requests.
    pub back: u64,
}

/// Whether A goes on alone in its first epoch.
pub fn is_alone(world: &World) -> bool {
    let seen = world.nodes[0].state.record.seen;
    seen.is_some_and(|seen| seen.mode == Mode::Solo && seen.owner == NodeId::A && seen.epoch == 1)
}

/// Whether B answers requests as the owner.
pub fn has_taken_over(world: &World) -> bool {
    answers(world, 1)
}

/// Whether both are in step in an epoch after the first.
pub fn is_pair_again(world: &World) -> bool {
    (0..2).any(|node| {
        let state = &world.nodes[node].state;
        let paired = state.mode() == Some(Mode::Pair) && state.record.intent.is_none();
        let later = state.record.seen.is_some_and(|seen| seen.epoch > 1);
        state.phase == Phase::Leader && paired && later && world.is_replicated(node)
    })
}

fn answers(world: &World, node: usize) -> bool {
    let later = world.nodes[node].state.record.seen.is_some_and(|seen| seen.epoch > 1);
    later && world.nodes[node].shown.is_some() && world.nodes[node].state.may_acknowledge(world.clock(node))
}

/// Walks so many steps. What broke a rule, and on which way, is the error.
pub fn walk(begin: &World, seed: u64, steps: usize, reached: &mut Reached) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = begin.clone();
    let mut way = Vec::new();
    let mut here = [false; 4];
    for _ in 0..steps {
        let Some(happening) = choose(&world, &mut rng) else { break };
        let Some(next) = world.after(happening) else { continue };
        way.push(happening);
        world = next;
        if let Some(broken) = world.broken {
            return Err(format!("seed {seed}: {broken}: {way:?}"));
        }
        let now = [is_alone(&world), has_taken_over(&world), is_pair_again(&world), here[1] && answers(&world, 0)];
        for (here, now) in here.iter_mut().zip(now) {
            *here |= now;
        }
    }
    let [alone, took_over, pair_again, back] = here.map(u64::from);
    reached.alone += alone;
    reached.took_over += took_over;
    reached.pair_again += pair_again;
    reached.back += back;
    Ok(())
}

/// Time passes most often, trouble strikes seldom and lasts for a while.
fn choose(world: &World, rng: &mut StdRng) -> Option<Happening> {
    use Happening::{Heal, KeptArrives, Move, Restart, Resume, SwapArrives, Tick, Write};
    let (mut usual, mut ends, mut trouble) = (Vec::new(), Vec::new(), Vec::new());
    let all = world.happenings();
    for happening in &all {
        match happening {
            Tick => {}
            Move(_) | Write(_) | SwapArrives(_, true) => usual.push(*happening),
            Heal | Restart(_) | Resume(_) | KeptArrives => ends.push(*happening),
            _ => trouble.push(*happening),
        }
    }
    let among = match rng.random_range(0..100) {
        0..5 => &trouble,
        5..15 => &ends,
        15..50 => return all.contains(&Tick).then_some(Tick),
        _ => &usual,
    };
    let among = if among.is_empty() { &usual } else { among };
    Some(if among.is_empty() { Tick } else { among[rng.random_range(0..among.len())] })
        .filter(|happening| all.contains(happening))
}

/// Walks from there on, in all the trouble that the budget has.
fn assert_walks_hold(pair: Pair) -> Reached {
    let (begin, walks, mut reached) = (pair.begin(), states_max() / 250, Reached::default());
    for seed in 1..=walks as u64 {
        if let Err(broken) = walk(&begin, seed, 250, &mut reached) {
            panic!("{:?} {:?} {:?}: {broken}", pair.mode, pair.third, pair.budget);
        }
    }
    println!("{:?} {:?} {:?}: {walks} walks, {reached:?}", pair.mode, pair.third, pair.budget);
    assert!(reached.took_over > 0 && reached.pair_again > 0, "{reached:?}");
    reached
}

/// Two of everything that machines and networks do.
const WALK: Budget = Budget { writes: 2, crashes: 2, cuts: 2, lost_answers: 2, versions: 40, ticks: 100, ..NONE };

/// More of that than can be explored in every order, and everything else.
const STORM: Budget = Budget {
    writes: 60,
    crashes: 3,
    cuts: 8,
    torn: 2,
    replaced: 1,
    postgres_crashes: 1,
    pauses: 2,
    switchovers: 1,
    rebuilds: 1,
    wishes: 1,
    disks: 1,
    late: 1,
    ..WALK
};

#[test]
fn long_walks_lose_nothing() {
    let reached = assert_walks_hold(Pair { budget: WALK, ..PAIR });
    assert!(reached.alone > 0 && reached.back > 0, "{reached:?}");
    let reached = assert_walks_hold(Pair { budget: Budget { restores: 1, ..STORM }, ..PAIR });
    assert!(reached.alone > 0 && reached.back > 0, "{reached:?}");
    assert_walks_hold(Pair { budget: STORM, clocks: APART, ..PAIR });
    assert_walks_hold(Pair { budget: Budget { switchovers: 2, ..STORM }, mode: Mode::Asym, ..PAIR });
    assert_walks_hold(Pair { budget: STORM, ..FENCED });
}

#[test]
fn long_walks_notice_broken_rules() {
    for mutation in [
        Mutation::ReadsWithoutLease,
        Mutation::AcknowledgesCancelled,
        Mutation::PromotesUnconfirmed,
        Mutation::LeadsOn,
        Mutation::KeepsEpoch,
    ] {
        let begin = Pair { budget: STORM, mutation: Some(mutation), ..PAIR }.begin();
        let found = (1..=400).find_map(|seed| walk(&begin, seed, 250, &mut Reached::default()).err());
        assert!(found.is_some_and(|found| !found.contains(UNDURABLE)), "{mutation:?} went unnoticed");
    }
}
