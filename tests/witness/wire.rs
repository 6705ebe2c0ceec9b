//! A connection to a store that a test can disturb.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Passing {
    #[default]
    Everything,
    /// Answers wait.
    Questions,
    Nothing,
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    passing: Passing,
    /// Answers that have come before this was counted up go on.
    let_through: u64,
    /// Connections that were made before this was counted up break.
    broken: u64,
}

/// See the module.
pub struct Wire {
    port: u16,
    orders: Arc<watch::Sender<Orders>>,
}

impl Wire {
    /// To what listens on `target`.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let orders = Arc::new(watch::Sender::new(Orders::default()));
        let given = Arc::clone(&orders);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, given.subscribe(), Passing::Questions));
                tokio::spawn(pass(from_server, to_client, given.subscribe(), Passing::Everything));
            }
        });
        Self { port, orders }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers wait from now on.
    pub fn hold_answers(&self) {
        self.orders.send_modify(|orders| orders.passing = Passing::Questions);
    }

    /// Those that have come go on.
    pub fn let_through(&self) {
        self.orders.send_modify(|orders| orders.let_through += 1);
    }

    /// Nothing arrives any more, and nobody is told.
    pub fn swallow(&self) {
        self.orders.send_modify(|orders| orders.passing = Passing::Nothing);
    }

    /// Connections end, with what was held; new ones work.
    pub fn break_connections(&self) {
        self.orders.send_modify(|orders| {
            orders.broken += 1;
            orders.passing = Passing::Everything;
        });
    }
}

/// Passes on what comes, unless less than `least` passes.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut orders: watch::Receiver<Orders>,
    least: Passing,
) {
    let began = orders.borrow().broken;
    let mut broken = orders.clone();
    let passing = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
            let came = orders.borrow().let_through;
            let passes = |now: &Orders| match now.passing {
                Passing::Everything => true,
                Passing::Questions => least == Passing::Questions || now.let_through > came,
                Passing::Nothing => false,
            };
            if orders.wait_for(passes).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = passing => {}
        _ = broken.wait_for(|now| now.broken != began) => {}
    }
}
