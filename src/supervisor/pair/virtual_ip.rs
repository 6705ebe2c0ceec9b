//! `--virtual-ip`: an address that is at the node that leads, for clients that can be given one address only.
//!
//! Invariants: the address is here only while this node may answer reads by itself (the gate), which a leader that was cut off may no longer
//! before another can lead; whatever ends Duet, the address goes: by this task, by the guardian, or by the kernel when its lifetime
//! ends. Before it is taken, the network is asked whether somebody else has it, and nobody is robbed of it.
//!
//! It deliberately holds up nothing: leading doesn't wait for the address, and doesn't end without it. Nor does it look for others who claim
//! the address while it is held.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::clock;
use super::gate::Rights;
use crate::net::virtual_ip::{Mac, VirtualIp};

/// Questions before the address is taken, and how long each waits for an answer. RFC 5227 takes seconds, for networks of its time and for
/// hosts that all start at once; here clients wait, and whoever leads has been decided already.
const PROBES: u32 = 3;
const PROBE_PATIENCE: Duration = Duration::from_millis(100);
/// How long the kernel keeps the address if nobody renews it, and how often it is renewed.
const LIFETIME: Duration = Duration::from_secs(5);
const RENEWAL: Duration = Duration::from_secs(1);
/// The first announcements come in quick succession, because any of them may be lost; and all through again and again, for who was cut off.
const QUICK_ANNOUNCEMENTS: u32 = 5;
const QUICK: Duration = Duration::from_millis(200);
const ANNOUNCED_EVERY: u32 = 10;
/// Before the next attempt to take an address that couldn't be taken; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How it is with the address on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIpStatus {
    /// With its network's length.
    pub address: String,
    /// Where it is added.
    pub interface: String,
    /// Where it is.
    pub state: Hold,
    /// Why it isn't here although it should be.
    pub trouble: Option<String>,
}

/// Where the address is, as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Not here, and it shouldn't be.
    Released,
    /// Here.
    Held,
    /// It should be here, and another machine has it.
    Duplicate,
    /// It should be here, and this machine can't take it.
    Failed,
}

impl Hold {
    /// For figures.
    pub const ALL: [&'static str; 4] = ["released", "held", "duplicate", "failed"];

    /// As in [`Hold::ALL`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Hold::Released => "released",
            Hold::Held => "held",
            Hold::Duplicate => "duplicate",
            Hold::Failed => "failed",
        }
    }
}

/// Why the address isn't here.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("another machine has it: the one at {0}. It is taken as soon as it is free")]
    Duplicate(Mac),
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Who takes the address, and gives it up. Runs until `stop`, and ends without the address.
#[must_use]
pub fn start(
    ip: VirtualIp,
    rights: watch::Receiver<Rights>,
    stop: CancellationToken,
) -> (watch::Receiver<VirtualIpStatus>, JoinHandle<()>) {
    let status =
        VirtualIpStatus { address: ip.to_string(), interface: ip.interface.clone(), state: Hold::Released, trouble: None };
    let (status, seen) = watch::channel(status);
    (seen, tokio::spawn(Holder { ip, rights, status }.run(stop)))
}

struct Holder {
    ip: VirtualIp,
    rights: watch::Receiver<Rights>,
    status: watch::Sender<VirtualIpStatus>,
}

impl Holder {
    async fn run(self, stop: CancellationToken) {
        // An earlier process of this node may have left it.
        self.release();
        while stop.run_until_cancelled(self.one_leadership()).await.is_some() {
            self.release();
        }
        self.release();
    }

    async fn one_leadership(&self) {
        self.until(true).await;
        tokio::select! {
            biased;
            () = self.until(false) => {}
            never = self.hold() => match never {},
        }
    }

    fn may_hold(&self) -> bool {
        self.rights.borrow().may_read(clock::now())
    }

    /// Resolves when this node may hold the address, or may not any more: that changes with its rights, and with time.
    async fn until(&self, may: bool) {
        let mut rights = self.rights.clone();
        loop {
            let (now, present) = (clock::now(), *rights.borrow_and_update());
            if present.may_read(now) == may {
                return;
            }
            let turns = if may { present.not_before } else { present.read_until };
            tokio::select! {
                changed = rights.changed() => match changed {
                    Ok(()) => {}
                    // Nobody gives rights any more; those that there were aren't taken for granted.
                    Err(_) if may => std::future::pending().await,
                    Err(_) => return,
                },
                () = sleep(Duration::from_millis(turns.saturating_sub(now))), if turns > now => {}
            }
        }
    }

    /// Takes the address as often as that is necessary.
    async fn hold(&self) -> Infallible {
        let mut pause = RETRY_MIN;
        loop {
            let Err(trouble) = self.take().await;
            self.tell(&trouble);
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Takes the address if nobody has it, and keeps it until something goes wrong.
    async fn take(&self) -> Result<Infallible, Trouble> {
        if let Some(mac) = block_in_place(|| self.ip.rival(PROBES, PROBE_PATIENCE))? {
            return Err(Trouble::Duplicate(mac));
        }
        self.keep().await.inspect_err(|_| self.remove()).map_err(Trouble::from)
    }

    async fn keep(&self) -> io::Result<Infallible> {
        for turn in 0_u32.. {
            if !self.may_hold() {
                // The right has run out while this process was asking, or stood still: that is about to be noticed in `one_leadership`.
                break;
            }
            block_in_place(|| self.ip.assign(LIFETIME))?;
            // Asked again: what neighbours remember would outlast an address that is removed at once.
            if self.may_hold() && (turn < QUICK_ANNOUNCEMENTS || turn % ANNOUNCED_EVERY == 0) {
                block_in_place(|| self.ip.announce())?;
            }
            if turn == 0 {
                tracing::info!(address = %self.ip, interface = self.ip.interface, "took the virtual IP");
                self.show(Hold::Held, None);
            }
            sleep(if turn < QUICK_ANNOUNCEMENTS { QUICK } else { RENEWAL }).await;
        }
        std::future::pending().await
    }

    fn release(&self) {
        self.remove();
        self.show(Hold::Released, None);
    }

    fn remove(&self) {
        let (address, interface) = (&self.ip, &self.ip.interface);
        match block_in_place(|| self.ip.remove()) {
            Ok(true) => tracing::info!(%address, interface, "gave up the virtual IP"),
            Ok(false) => {}
            Err(error) => {
                let soon = LIFETIME;
                tracing::warn!(%address, interface, %error, "can't remove the virtual IP; if it is here, it goes within {soon:?}");
            }
        }
    }

    fn tell(&self, trouble: &Trouble) {
        let state = if matches!(trouble, Trouble::Duplicate(_)) { Hold::Duplicate } else { Hold::Failed };
        if self.show(state, Some(trouble.to_string())) {
            tracing::warn!(address = %self.ip, interface = self.ip.interface, "can't take the virtual IP: {trouble}");
        }
    }

    /// Whether that is new.
    fn show(&self, state: Hold, trouble: Option<String>) -> bool {
        self.status.send_if_modified(|status| {
            let is_new = (status.state, &status.trouble) != (state, &trouble);
            (status.state, status.trouble) = (state, trouble);
            is_new
        })
    }
}
