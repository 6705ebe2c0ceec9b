//! The guardian: a small parent that kills a Duet which stands still, and starts it again.
//!
//! A frozen process can't help itself, and its clients wait for its sockets for half a minute and more. When it is killed, the kernel resets
//! them, and clients go to the other node at once. The child shows that it lives by a byte in a pipe, ten times a second, sent by one
//! runtime when the other has shown that it lives, too.
//!
//! Invariants: the child never outlives the parent; a parent that was stopped itself blames nobody; a child that ends by itself ends the
//! parent with its exit code; the virtual IP doesn't stay behind a child that has ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::Failure;
use crate::net::virtual_ip::VirtualIp;

/// Names the pipe's end, for the child.
const VARIABLE: &str = "GUARDED_BY_DUET";
/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_millis(100);
/// A child that gives none for so long is killed.
const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// Between two looks of the parent's.
const LOOK_MILLIS: u16 = 100;
/// A look that comes so late tells that the parent was stopped.
const LATE: Duration = Duration::from_millis(300);
/// A child that was killed is started again so often within so long.
const RESTARTS_MAX: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Before it is started again, for each time that it was within the last minute.
const PAUSE: Duration = Duration::from_millis(50);
/// Those that ask for an end.
const STOPS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];
const PASSED_ON: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// What this process is.
pub(super) enum Part {
    /// The parent, whose child has ended like this.
    Ended(Result<(), Failure>),
    /// The child, or a process without a guardian.
    Runs(Option<Pulse>),
}

/// The child's end of the pipe.
pub(super) struct Pulse(File);

impl Pulse {
    /// One sign of life.
    pub(super) fn beat(&mut self) {
        // A full pipe is a parent that is stopped, a closed one is a parent that has gone, whose death this process was told of.
        let _ = self.0.write(&[0]);
    }
}

/// In the parent: runs this program again, guarded, until it ends. Only before there are threads.
///
/// `virtual_ip` is what the child may hold; what ends it may have left it no time to give that up.
pub(super) fn guard(virtual_ip: Option<&VirtualIp>) -> Part {
    if let Some(pulse) = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).and_then(inherited) {
        return Part::Runs(Some(pulse));
    }
    match Guardian::new() {
        Ok(mut guardian) => Part::Ended(guardian.run(virtual_ip)),
        Err(error) => {
            eprintln!("duet: running without a guardian: {error}");
            Part::Runs(None)
        }
    }
}

fn inherited(fd: i32) -> Option<Pulse> {
    // SAFETY: the parent left this descriptor open for this process alone; that it is open is asked first.
    let pipe = unsafe { nix::libc::fcntl(fd, nix::libc::F_GETFD).ge(&0).then(|| OwnedFd::from_raw_fd(fd))? };
    // PostgreSQL must not inherit it.
    fcntl(&pipe, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(Pulse(pipe.into()))
}

struct Guardian {
    signals: SignalFd,
    restarts: Vec<Instant>,
}

impl Guardian {
    fn new() -> io::Result<Self> {
        let awaited: SigSet = PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect();
        awaited.thread_block()?;
        Ok(Self {
            signals: SignalFd::with_flags(&awaited, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            restarts: Vec::new(),
        })
    }

    fn run(&mut self, virtual_ip: Option<&VirtualIp>) -> Result<(), Failure> {
        loop {
            let failed = |error: io::Error| Failure::serving(format!("the guardian can't run Duet: {error}"));
            let (mut child, pulses) = start().map_err(failed)?;
            let status = self.watch(&mut child, pulses).map_err(failed)?;
            // Only now: the kernel resets the child's connections from the address that they are to.
            match virtual_ip.map(VirtualIp::remove) {
                Some(Ok(true)) => eprintln!("duet: gave up the virtual IP for the Duet that has ended"),
                Some(Ok(false)) | None => {}
                Some(Err(error)) => eprintln!("duet: can't remove the virtual IP, which goes by itself within seconds: {error}"),
            }
            let Some(signal) = status.signal() else {
                // It has said why itself.
                let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                return if code == 0 { Ok(()) } else { Err(Failure::silent(code)) };
            };
            if STOPS.iter().any(|stop| *stop as i32 == signal) {
                // Told to stop so early that it wasn't listening yet.
                return Ok(());
            }
            self.restarts.retain(|at| at.elapsed() < WINDOW);
            if self.restarts.len() >= RESTARTS_MAX {
                return Err(Failure::serving(format!(
                    "Duet was ended by signal {signal}, for the {RESTARTS_MAX}th time within {WINDOW:?}"
                )));
            }
            let again = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
            self.restarts.push(Instant::now());
            eprintln!("duet: ended by signal {signal}; starting it again");
            std::thread::sleep(PAUSE.saturating_mul(again));
        }
    }

    /// Until the child has ended.
    fn watch(&mut self, child: &mut Child, mut pulses: File) -> io::Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let (mut lived, mut looked) = (None, Instant::now());
        let mut buffer = [0; 1024];
        loop {
            let mut awaited =
                [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN), PollFd::new(pulses.as_fd(), PollFlags::POLLIN)];
            match poll(&mut awaited, PollTimeout::from(LOOK_MILLIS)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            while let Ok(Some(info)) = self.signals.read_signal() {
                match i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) {
                    Some(Signal::SIGCHLD) | None => {}
                    // It may have ended just now.
                    Some(signal) => drop(kill(pid, signal).ok()),
                }
            }
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if pulses.read(&mut buffer).is_ok_and(|length| length > 0) {
                lived = Some(Instant::now());
            }
            if looked.elapsed() > LATE && lived.is_some() {
                lived = Some(Instant::now());
            }
            looked = Instant::now();
            // One that still starts hasn't lived yet.
            if lived.is_some_and(|at: Instant| at.elapsed() > SILENCE_MAX) {
                eprintln!("duet: stands still since {SILENCE_MAX:?}; killing it, so that its clients go to the other node");
                kill(pid, Signal::SIGKILL)?;
                return child.wait();
            }
        }
    }
}

/// This program again, and the pipe in which it shows that it lives.
fn start() -> io::Result<(Child, File)> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let fd = theirs.as_raw_fd();
    let mut words = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(words.next().unwrap_or_default()).args(words).env(VARIABLE, fd.to_string());
    // What a terminal sends reaches the parent, which passes it on once.
    command.process_group(0);
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only these system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if nix::libc::fcntl(fd, nix::libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            SigSet::all().thread_unblock()?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    drop(theirs);
    Ok((child, ours.into()))
}
