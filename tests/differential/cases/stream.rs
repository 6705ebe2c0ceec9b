//! RangeStream.

use crate::script::*;
use crate::steps;
use duet::proto::etcdserverpb::range_request::{SortOrder, SortTarget};

/// So many keys, each with a value of so many bytes.
fn keys(n: usize, size: usize) -> Vec<Step> {
    (0..n).map(|i| put(format!("k{i:04}"), vec![b'v'; size]).into()).collect()
}

fn on_keys(name: &str, n: usize, size: usize, steps: Vec<Step>) -> Case {
    let mut all = keys(n, size);
    all.extend(steps);
    case(name, all)
}

pub fn cases() -> Vec<Case> {
    let all = || get("k").prefix();
    vec![
        case("a stream of nothing is one chunk", steps![get("a").stream(), get("a").to("z").stream()]),
        case("a stream of one key", steps![put("a", "1"), get("a").stream(), get("a").limit(1).stream()]),
        on_keys("ten keys are one chunk", 10, 1, steps![all().stream()]),
        on_keys("eleven keys are two chunks", 11, 1, steps![all().stream()]),
        on_keys("chunks grow", 100, 1, steps![all().stream()]),
        on_keys("chunks stop growing at their target size", 40, 100_000, steps![all().stream()]),
        on_keys("chunks shrink when they were too large", 24, 900_000, steps![all().stream()]),
        on_keys(
            "a limit cuts the stream, and more and count say so",
            45,
            1,
            steps![
                all().limit(5).stream(),
                all().limit(10).stream(),
                all().limit(11).stream(),
                all().limit(30).stream(),
                all().limit(44).stream(),
                all().limit(45).stream(),
                all().limit(46).stream()
            ],
        ),
        on_keys("a negative limit", 12, 1, steps![all().limit(-1).stream()]),
        on_keys("the greatest limit", 12, 1, steps![all().limit(i64::MAX).stream()]),
        on_keys(
            "count_only is one chunk",
            12,
            1,
            steps![all().count_only().stream(), all().count_only().limit(3).stream(), all().count_only().rev(5).stream()],
        ),
        on_keys("keys_only", 12, 5, steps![all().keys_only().stream(), all().keys_only().limit(3).stream()]),
        on_keys("an old revision", 15, 1, steps![all().rev(13).stream(), all().rev(12).stream(), all().rev(2).stream()]),
        on_keys("the header is the current revision", 3, 1, steps![put("x", "1"), all().stream(), all().rev(3).stream()]),
        on_keys("a future revision is refused", 2, 1, steps![all().rev(50).stream()]),
        on_keys(
            "a compacted revision is refused",
            3,
            1,
            steps![compact(3), all().rev(2).stream(), all().rev(3).stream(), all().rev(2).count_only().stream()],
        ),
        on_keys("a negative revision", 12, 1, steps![all().rev(-1).stream()]),
        on_keys(
            "an ascending sort by key is the default order",
            12,
            1,
            steps![all().sort((SortTarget::Key, SortOrder::Ascend)).stream()],
        ),
        on_keys(
            "other sorts aren't there",
            3,
            1,
            steps![
                all().sort((SortTarget::Key, SortOrder::Descend)).stream(),
                all().sort((SortTarget::Mod, SortOrder::Ascend)).stream(),
                all().sort((SortTarget::Value, SortOrder::None)).stream(),
                all().sort((SortTarget::Version, SortOrder::Descend)).stream()
            ],
        ),
        on_keys(
            "revision filters aren't there",
            3,
            1,
            steps![
                all().min_mod(2).stream(),
                all().max_mod(2).stream(),
                all().min_create(2).stream(),
                all().max_create(2).stream()
            ],
        ),
        case(
            "an empty key is refused first",
            steps![get("").sort((SortTarget::Mod, SortOrder::Descend)).stream(), get("").stream()],
        ),
        case(
            "an unknown sort option is refused",
            steps![get("a").sort_numbers((9, 0)).stream(), get("a").sort_numbers((0, 9)).min_mod(1).stream()],
        ),
        on_keys("serializable", 12, 1, steps![all().serializable().stream()]),
        on_keys("a range end of NUL", 12, 1, steps![get("k0005").to([0]).stream(), get([0]).to([0]).stream()]),
    ]
}
