//! `process_*` and `os_fd_*`: what this process takes from the machine, read from `/proc/self` at each scrape.
//!
//! Names as Prometheus' client libraries and etcd have them. A figure that can't be read is left out of that scrape
//! rather than reported as zero.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge};

/// `/proc` counts time in ticks of 1/100 s on every architecture (USER_HZ is part of the kernel's ABI).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads one figure; `None` leaves it out of the scrape.
type Read = fn() -> Option<i64>;

pub(super) struct ProcessCollector {
    cpu_seconds_total: prometheus::Counter,
    start_time_seconds: Gauge,
    others: [(IntGauge, Read); 6],
}

impl ProcessCollector {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let start_time_seconds =
            Gauge::new("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")?;
        start_time_seconds.set(start_time().unwrap_or_default());
        let gauge = IntGauge::new;
        Ok(Self {
            cpu_seconds_total: prometheus::Counter::new(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            start_time_seconds,
            others: [
                (gauge("process_open_fds", "Number of open file descriptors.")?, open_fds),
                (gauge("process_max_fds", "Maximum number of open file descriptors.")?, max_fds),
                (gauge("process_resident_memory_bytes", "Resident memory size in bytes.")?, || status_bytes("VmRSS:")),
                (gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")?, || status_bytes("VmSize:")),
                (gauge("os_fd_used", "The number of used file descriptors.")?, open_fds),
                (gauge("os_fd_limit", "The file descriptor limit.")?, max_fds),
            ],
        })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = self.others.iter().flat_map(|(gauge, _)| gauge.desc());
        self.cpu_seconds_total.desc().into_iter().chain(self.start_time_seconds.desc()).chain(gauges).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.start_time_seconds.collect();
        if let Some(cpu) = cpu_seconds() {
            // Two scrapes at once could both see the same difference; never let the counter pass the truth.
            self.cpu_seconds_total.inc_by((cpu - self.cpu_seconds_total.get()).max(0.0));
            families.extend(self.cpu_seconds_total.collect());
        }
        for (gauge, read) in &self.others {
            if let Some(value) = read() {
                gauge.set(value);
                families.extend(gauge.collect());
            }
        }
        families
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Some(micros as f64 / 1e6)
}

fn open_fds() -> Option<i64> {
    // The directory handle that counts is itself one of the entries.
    i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok().map(|n| n - 1)
}

fn max_fds() -> Option<i64> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    i64::try_from(soft).ok()
}

/// A line of `/proc/self/status` such as `VmRSS:     12345 kB`, in bytes.
fn status_bytes(key: &str) -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    let kib: i64 = line[key.len()..].trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Unix seconds: the machine's boot time plus field 22 of `/proc/self/stat`.
fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Field 2 is the command in parentheses and may itself contain spaces and parentheses.
    let after_command = &stat[stat.rfind(')')? + 2..];
    let ticks: f64 = after_command.split(' ').nth(22 - 3)?.parse().ok()?;
    let machine = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some(boot + ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn the_process_figures_are_those_of_this_process() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let started = start_time().unwrap();
        assert!(started <= now + 1.0 && started > now - 86_400.0, "{started} against {now}");
        let before = open_fds().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(open_fds().unwrap() > before - 8, "tests beside this one open and close files too");
        drop(file);
        assert!(status_bytes("VmRSS:").unwrap() > 1 << 20);
        assert!(status_bytes("VmSize:").unwrap() >= status_bytes("VmRSS:").unwrap());
        assert!(max_fds().unwrap() > 0);
        assert!(cpu_seconds().is_some());
    }

    #[test]
    fn every_figure_appears_in_a_scrape() {
        let collector = ProcessCollector::new().unwrap();
        assert_eq!(collector.collect().len(), collector.desc().len());
    }
}
