//! Durations and sizes as people write them, with their units in the type.
//!
//! Durations read exactly as Go's `time.ParseDuration` reads them, because etcd's flags and manifests are written for
//! it; sizes also take units, which etcd's don't.

use std::fmt;
use std::time::Duration;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 10] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
    ("", 1),
];

impl ByteSize {
    /// Reads `2147483648`, `2GiB`, `512 MiB`, `1.5GB`.
    ///
    /// # Errors
    /// What is wrong, as half a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim().to_ascii_lowercase());
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| format!("\"{text}\" is not a size; write bytes or a unit, such as 2147483648 or 2GiB"))?;
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(*factor),
            Err(_) => number.parse::<f64>().ok().map(|part| part * *factor as f64).filter(|b| *b < 1e18).map(|b| b as u64),
        };
        bytes.map(ByteSize).ok_or_else(|| format!("\"{text}\" is not a size; write bytes or a unit, such as 2147483648 or 2GiB"))
    }

    /// For people: in the largest unit that fits, with one digit behind the point.
    #[must_use]
    pub fn rounded(self) -> String {
        match UNITS[..4].iter().rev().find(|(_, factor)| self.0 >= *factor) {
            Some((unit, factor)) => {
                format!("{:.1} {}iB", self.0 as f64 / *factor as f64, unit[..1].to_ascii_uppercase())
            }
            None => format!("{} B", self.0),
        }
    }

    /// The number of bytes, where an API wants a `usize`.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS[..4].iter().rev().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match whole {
            Some((unit, factor)) => write!(f, "{}{}iB", self.0 / factor, unit[..1].to_ascii_uppercase()),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Reads a duration as Go does: numbers with units `ns us µs ms s m h`, joined: `1h30m`, `1.5s`, or `0`.
///
/// # Errors
/// What is wrong, as half a sentence; negative durations too, since no option here has a use for one.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration; write a number and a unit, such as 10m, 5s or 1h30m");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total_ns = 0_f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit_ns = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(wrong()),
        };
        total_ns += number * unit_ns;
        rest = &rest[unit_end..];
    }
    // Go's range: 2^63 ns, some 292 years.
    if total_ns >= i64::MAX as f64 {
        return Err(format!("\"{text}\" is longer than 292 years"));
    }
    Ok(Duration::from_nanos(total_ns.round() as u64))
}

/// Writes a duration as Go does for the values that options take: `10m0s` becomes the shorter `10m`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let (secs, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match (secs, nanos) {
        (0, 0) => "0s".to_owned(),
        (0, n) if n % 1_000_000 == 0 => format!("{}ms", n / 1_000_000),
        (0, n) => format!("{n}ns"),
        (s, 0) if s % 3600 == 0 => format!("{}h", s / 3600),
        (s, 0) if s % 60 == 0 => format!("{}m", s / 60),
        (s, 0) => format!("{s}s"),
        _ => format!("{}s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_gos_do() {
        for (text, expected) in [
            ("10m", Duration::from_secs(600)),
            ("5s", Duration::from_secs(5)),
            ("1h30m", Duration::from_secs(5400)),
            ("1.5s", Duration::from_millis(1500)),
            ("100ms", Duration::from_millis(100)),
            (".5s", Duration::from_millis(500)),
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("1us", Duration::from_micros(1)),
        ] {
            assert_eq!(parse_duration(text).unwrap(), expected, "{text}");
        }
        for text in ["", "5", "s", "5 s", "-5s", "5x", "1h30", "..s", "9999999h9999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_written_duration_reads_back_as_itself() {
        for ms in [0, 1, 999, 1000, 1500, 60_000, 90_000, 3_600_000, 5_400_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }
    }

    #[test]
    fn sizes_are_rounded_for_people() {
        let shown = [0, 1023, 1024, 1536 << 20, 3 << 40].map(|bytes| ByteSize(bytes).rounded());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "3.0 TiB"]);
    }

    #[test]
    fn sizes_take_bytes_or_units() {
        for (text, expected) in
            [("2147483648", 2 << 30), ("2GiB", 2 << 30), ("512 mib", 512 << 20), ("1.5GB", 1_500_000_000), ("10KB", 10_000)]
        {
            assert_eq!(ByteSize::parse(text).unwrap(), ByteSize(expected), "{text}");
        }
        for text in ["", "GiB", "12 parsecs", "-1", "99999999999999TiB", "1.2.3MB"] {
            assert!(ByteSize::parse(text).is_err(), "{text}");
        }
        assert_eq!(ByteSize(2 << 30).to_string(), "2GiB");
        assert_eq!(ByteSize(1_572_864).to_string(), "1536KiB");
        assert_eq!(ByteSize(1000).to_string(), "1000B");
    }
}
