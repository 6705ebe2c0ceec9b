//! Scripts written by hand, by area.

mod cluster;
mod compaction;
mod delete;
mod lease;
mod limits;
mod maintenance;
mod metadata;
mod put;
mod range;
mod stream;
mod txn;
mod watch;

use crate::script::Case;

/// All cases, each with its area.
pub fn all() -> Vec<Case> {
    let areas = [
        ("range", range::cases()),
        ("put", put::cases()),
        ("delete", delete::cases()),
        ("txn", txn::cases()),
        ("compaction", compaction::cases()),
        ("watch", watch::cases()),
        ("lease", lease::cases()),
        ("limits", limits::cases()),
        ("stream", stream::cases()),
        ("cluster", cluster::cases()),
        ("maintenance", maintenance::cases()),
        ("metadata", metadata::cases()),
    ];
    areas.into_iter().flat_map(|(area, cases)| cases.into_iter().map(move |case| Case { area, ..case })).collect()
}
