//! Who gets a session over the network.

use std::path::Path;

use crate::nodes::{A, B, Nodes};

/// Beside its own Unix socket, which is Duet's user's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_network_postgresql_lets_only_the_other_node_in() {
    const PEER_ROLE: &str = "duet_replica";
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    for (node, own) in [(A, nodes.home(A)), (B, nodes.home(B))] {
        let peer = nodes.home(1 - node);
        nodes.reach(node, PEER_ROLE, Some(&peer)).await.expect("the other node");
        let no_certificate = Path::new("");
        for (who, user, tls) in [
            ("in clear", PEER_ROLE, None),
            ("the superuser in clear", "duet", None),
            ("without a certificate", PEER_ROLE, Some(no_certificate)),
            ("the superuser", "duet", Some(&*peer)),
            ("the node itself", PEER_ROLE, Some(&own)),
            ("the witness", PEER_ROLE, Some(&nodes.stranger(&format!("witness{node}.test.duet"), true))),
            ("another CA's", PEER_ROLE, Some(&nodes.stranger(&format!("{}.test.duet", ["b", "a"][node]), false))),
        ] {
            assert!(nodes.reach(node, user, tls).await.is_err(), "{who} is let in at {node}");
        }
    }
    nodes.end([a, b]).await;
}
