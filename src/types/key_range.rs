//! etcd's `(key, range_end)` pairs as one type.

use std::ops::Bound;

use bytes::Bytes;

/// The keys that a request or a watcher speaks of.
///
/// etcd's rules: an empty `range_end` means the one key; a `range_end` of one zero byte means every key from `key` on; otherwise
/// the range is half-open. A range whose end is not above its start is empty, which is legal in a Range and refused in a Watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyRange {
    /// Exactly this key.
    Key(Bytes),
    /// `start <= key < end`.
    Span(Bytes, Bytes),
    /// `start <= key`.
    From(Bytes),
}

impl KeyRange {
    /// Reads a request's `key` and `range_end`.
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::Key(key),
            [0] => Self::From(key),
            _ => Self::Span(key, range_end),
        }
    }

    /// The first key that may belong to the range.
    pub fn start(&self) -> &Bytes {
        match self {
            Self::Key(key) | Self::Span(key, _) | Self::From(key) => key,
        }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(only) => only.as_ref() == key,
            Self::Span(start, end) => start.as_ref() <= key && key < end.as_ref(),
            Self::From(start) => start.as_ref() <= key,
        }
    }

    /// Whether no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Span(start, end) if end <= start)
    }

    /// The range as bounds for an ordered map. The bounds of an empty range must not be asked for: ordered maps panic on them.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        debug_assert!(!self.is_empty(), "bounds of an empty range");
        match self {
            Self::Key(key) => (Bound::Included(key), Bound::Included(key)),
            Self::Span(start, end) => (Bound::Included(start), Bound::Excluded(end)),
            Self::From(start) => (Bound::Included(start), Bound::Unbounded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
    }

    #[test]
    fn an_empty_end_names_one_key() {
        assert!(range("a", "").contains(b"a"));
        assert!(!range("a", "").contains(b"ab"));
    }

    #[test]
    fn a_zero_byte_end_is_open() {
        assert!(range("b", "\0").contains(b"zzz"));
        assert!(!range("b", "\0").contains(b"a"));
    }

    #[test]
    fn a_span_excludes_its_end() {
        assert!(range("a", "c").contains(b"b"));
        assert!(!range("a", "c").contains(b"c"));
    }

    #[test]
    fn a_reversed_span_is_empty() {
        assert!(range("c", "a").is_empty());
        assert!(range("a", "a").is_empty());
        assert!(!range("a", "\0").is_empty());
    }
}
