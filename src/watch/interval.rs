//! Which watchers watch a key: an index over key ranges.
//!
//! Ranges of one key are an ordered map; spans are an AVL tree ordered by `(start, end)` in which every node also knows the greatest
//! end below it, so that a stabbing query skips subtrees that end too early. Equal spans share a node: a thousand watchers of one
//! prefix are one node. A query costs `O(log n)` per matching span.
//!
//! Doesn't know what a watcher is: ids are opaque. Empty ranges must be refused by the caller.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::types::KeyRange;

/// Ids by the key ranges that they are interested in. An id may be present under several ranges; a query then visits it once for each.
#[derive(Debug)]
pub struct IntervalIndex<T> {
    keys: BTreeMap<Bytes, BTreeSet<T>>,
    spans: Link<T>,
    len: usize,
}

impl<T> Default for IntervalIndex<T> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), spans: None, len: 0 }
    }
}

impl<T: Copy + Ord> IntervalIndex<T> {
    /// How many (range, id) pairs there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody is interested in anything.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `id` under `range`, which isn't empty. Answers false if it was there already.
    pub fn insert(&mut self, range: &KeyRange, id: T) -> bool {
        debug_assert!(!range.is_empty(), "an empty range matches no key");
        let added = match Span::of(range) {
            None => self.keys.entry(range.start().clone()).or_default().insert(id),
            Some(span) => {
                let (spans, added) = insert(self.spans.take(), span, id);
                self.spans = Some(spans);
                added
            }
        };
        self.len += usize::from(added);
        added
    }

    /// Removes `id` from `range`. Answers false if it wasn't there.
    pub fn remove(&mut self, range: &KeyRange, id: T) -> bool {
        let removed = match Span::of(range) {
            None => self.remove_key(range.start(), id),
            Some(span) => {
                let (spans, removed) = remove(self.spans.take(), &span, id);
                self.spans = spans;
                removed
            }
        };
        self.len -= usize::from(removed);
        removed
    }

    fn remove_key(&mut self, key: &Bytes, id: T) -> bool {
        let Some(ids) = self.keys.get_mut(key) else { return false };
        let removed = ids.remove(&id);
        if ids.is_empty() {
            self.keys.remove(key);
        }
        removed
    }

    /// Visits the ids whose range contains `key`: first those of the single key, then those of spans, each span's ids ascending.
    pub fn stab(&self, key: &[u8], mut visit: impl FnMut(T)) {
        for id in self.keys.get(key).into_iter().flatten() {
            visit(*id);
        }
        stab(&self.spans, key, &mut |ids| {
            ids.iter().for_each(|id| visit(*id));
            true
        });
    }

    /// Whether any range contains `key`.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key) || !stab(&self.spans, key, &mut |_| false)
    }
}

/// Where a span ends: open ends come after all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl End {
    fn is_above(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_ref(),
            Self::Open => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    start: Bytes,
    end: End,
}

impl Span {
    /// The range as a span; `None` for a single key.
    fn of(range: &KeyRange) -> Option<Self> {
        match range {
            KeyRange::Key(_) => None,
            KeyRange::Span(start, end) => Some(Self { start: start.clone(), end: End::Before(end.clone()) }),
            KeyRange::From(start) => Some(Self { start: start.clone(), end: End::Open }),
        }
    }
}

type Link<T> = Option<Box<Node<T>>>;

#[derive(Debug)]
struct Node<T> {
    span: Span,
    ids: BTreeSet<T>,
    /// The greatest end of this node's span and of all below it.
    max_end: End,
    /// Nodes on the longest way down, this one included.
    height: u32,
    left: Link<T>,
    right: Link<T>,
}

fn height<T>(link: &Link<T>) -> u32 {
    link.as_ref().map_or(0, |node| node.height)
}

impl<T> Node<T> {
    /// Brings what the node knows of its subtree up to date.
    fn refresh(&mut self) {
        self.height = 1 + height(&self.left).max(height(&self.right));
        let below = [&self.left, &self.right].into_iter().flatten().map(|node| &node.max_end).max();
        self.max_end = below.map_or(&self.span.end, |end| end.max(&self.span.end)).clone();
    }

    /// Restores the balance of a node whose subtrees are balanced and differ by at most two in height.
    fn balanced(mut self: Box<Self>) -> Box<Self> {
        self.refresh();
        if height(&self.left) > height(&self.right) + 1 {
            self.left =
                self.left.take().map(|left| if height(&left.right) > height(&left.left) { left.rotated_left() } else { left });
            return self.rotated_right();
        }
        if height(&self.right) > height(&self.left) + 1 {
            self.right = self
                .right
                .take()
                .map(|right| if height(&right.left) > height(&right.right) { right.rotated_right() } else { right });
            return self.rotated_left();
        }
        self
    }

    fn rotated_left(mut self: Box<Self>) -> Box<Self> {
        let Some(mut top) = self.right.take() else { return self };
        self.right = top.left.take();
        self.refresh();
        top.left = Some(self);
        top.refresh();
        top
    }

    fn rotated_right(mut self: Box<Self>) -> Box<Self> {
        let Some(mut top) = self.left.take() else { return self };
        self.left = top.right.take();
        self.refresh();
        top.right = Some(self);
        top.refresh();
        top
    }
}

fn insert<T: Copy + Ord>(link: Link<T>, span: Span, id: T) -> (Box<Node<T>>, bool) {
    let Some(mut node) = link else {
        let node = Node { max_end: span.end.clone(), span, ids: BTreeSet::from([id]), height: 1, left: None, right: None };
        return (Box::new(node), true);
    };
    let added = match span.cmp(&node.span) {
        Ordering::Equal => node.ids.insert(id),
        Ordering::Less => {
            let (left, added) = insert(node.left.take(), span, id);
            node.left = Some(left);
            added
        }
        Ordering::Greater => {
            let (right, added) = insert(node.right.take(), span, id);
            node.right = Some(right);
            added
        }
    };
    (node.balanced(), added)
}

fn remove<T: Copy + Ord>(link: Link<T>, span: &Span, id: T) -> (Link<T>, bool) {
    let Some(mut node) = link else { return (None, false) };
    let removed = match span.cmp(&node.span) {
        Ordering::Equal => {
            let removed = node.ids.remove(&id);
            if node.ids.is_empty() {
                return (joined(node.left.take(), node.right.take()), removed);
            }
            removed
        }
        Ordering::Less => {
            let (left, removed) = remove(node.left.take(), span, id);
            node.left = left;
            removed
        }
        Ordering::Greater => {
            let (right, removed) = remove(node.right.take(), span, id);
            node.right = right;
            removed
        }
    };
    (Some(node.balanced()), removed)
}

/// One tree of two whose common parent went away.
fn joined<T>(left: Link<T>, right: Link<T>) -> Link<T> {
    let Some(right) = right else { return left };
    let (mut least, rest) = without_least(right);
    least.left = left;
    least.right = rest;
    Some(least.balanced())
}

fn without_least<T>(mut node: Box<Node<T>>) -> (Box<Node<T>>, Link<T>) {
    let Some(left) = node.left.take() else {
        let rest = node.right.take();
        return (node, rest);
    };
    let (least, rest) = without_least(left);
    node.left = rest;
    (least, Some(node.balanced()))
}

/// Visits the ids of all spans that contain `key` until `visit` answers false; answers whether it went to the end.
fn stab<T>(link: &Link<T>, key: &[u8], visit: &mut impl FnMut(&BTreeSet<T>) -> bool) -> bool {
    let Some(node) = link else { return true };
    if !node.max_end.is_above(key) {
        return true;
    }
    if !stab(&node.left, key, visit) {
        return false;
    }
    if node.span.start.as_ref() > key {
        return true;
    }
    if node.span.end.is_above(key) && !visit(&node.ids) {
        return false;
    }
    stab(&node.right, key, visit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', b'b', 0xff]), 0..4).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), key(), 0..3).prop_filter_map("an empty range", |(start, end, kind)| {
            let range = match kind {
                0 => KeyRange::Key(start),
                1 => KeyRange::From(start),
                _ => KeyRange::Span(start, end),
            };
            (!range.is_empty()).then_some(range)
        })
    }

    fn check(link: &Link<u32>) -> u32 {
        let Some(node) = link else { return 0 };
        let (left, right) = (check(&node.left), check(&node.right));
        assert!(left.abs_diff(right) <= 1, "a node is out of balance");
        assert_eq!(node.height, 1 + left.max(right));
        assert!(!node.ids.is_empty());
        let below = [&node.left, &node.right].into_iter().flatten();
        let max_end = below.map(|below| below.max_end.clone()).max().into_iter().chain([node.span.end.clone()]).max();
        assert_eq!(Some(&node.max_end), max_end.as_ref());
        node.height
    }

    proptest! {
        #[test]
        fn a_query_finds_what_a_scan_finds(
            steps in prop::collection::vec((any::<bool>(), range(), 0u32..4), 0..120),
            probes in prop::collection::vec(key(), 1..40),
        ) {
            let mut index = IntervalIndex::default();
            let mut model: BTreeSet<(KeyRange, u32)> = BTreeSet::new();
            for (add, range, id) in steps {
                if add {
                    prop_assert_eq!(index.insert(&range, id), model.insert((range, id)));
                } else {
                    // Half of the time remove something that is there.
                    let victim = model.iter().find(|(known, _)| *known >= range).cloned().unwrap_or((range, id));
                    prop_assert_eq!(index.remove(&victim.0, victim.1), model.remove(&victim));
                }
                check(&index.spans);
                prop_assert_eq!(index.len(), model.len());
            }
            for probe in probes {
                let mut found = Vec::new();
                index.stab(&probe, |id| found.push(id));
                found.sort_unstable();
                let mut expected: Vec<u32> =
                    model.iter().filter(|(range, _)| range.contains(&probe)).map(|(_, id)| *id).collect();
                expected.sort_unstable();
                prop_assert_eq!(index.contains(&probe), !expected.is_empty());
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn many_ascending_spans_stay_shallow() {
        let mut index = IntervalIndex::default();
        for number in 0..10_000u32 {
            let start = Bytes::copy_from_slice(&number.to_be_bytes());
            let end = Bytes::copy_from_slice(&(number + 1).to_be_bytes());
            index.insert(&KeyRange::Span(start, end), number);
        }
        assert!(check(&index.spans) <= 19, "an AVL tree of 10,000 nodes is at most 19 high");
        let mut found = Vec::new();
        index.stab(&4711u32.to_be_bytes(), |id| found.push(id));
        assert_eq!(found, [4711]);
    }
}
