//! Versions as etcd's Downgrade takes them: `major.minor`, or a whole semantic version, of which only that part counts.

/// Major and minor version; `None` if it is no version.
pub(super) fn parse(text: &str) -> Option<(i64, i64)> {
    semver(text).or_else(|| semver(&format!("{text}.0")))
}

fn semver(text: &str) -> Option<(i64, i64)> {
    let release = text.split_once('+').map_or(text, |(release, _)| release);
    let numbers = release.split_once('-').map_or(release, |(numbers, _)| numbers);
    let mut parts = numbers.splitn(3, '.').map(|part| part.parse::<i64>().ok().filter(|number| *number >= 0));
    let (major, minor, _patch) = (parts.next()??, parts.next()??, parts.next()??);
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_may_lack_its_patch_level() {
        assert_eq!(parse("3.6"), Some((3, 6)));
        assert_eq!(parse("3.6.4"), Some((3, 6)));
        assert_eq!(parse("3.6.0-rc.1+build"), Some((3, 6)));
    }

    #[test]
    fn anything_else_is_no_version() {
        for text in ["", "3", "v3.6", "3.6.4.1", "3.x", "three"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
