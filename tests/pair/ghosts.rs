//! Commits that only the leader has, although nobody waits for them any more: somebody has cancelled the wait.

use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, WatchOptions};
use nix::sys::signal::{Signal, kill};

use crate::pair::Pair;

/// Long enough for a session that begins anew, and for everything that is read again with it.
const LOOKED_FOR: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_millis(200);

/// PostgreSQL takes a commit for done when the wait for the standby is cancelled, and shows it to everybody. Nobody may see it through Duet
/// before the follower has it: if the leader were lost now, it would never have been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_follower_has_not_got_is_read_by_nobody_though_postgresql_shows_it() {
    let mut pair = Pair::start_unguarded().await;
    let leader = pair.until_paired().await;
    let follower = 1 - leader;
    let url = pair.urls()[leader].clone();
    let mut client = Client::connect([url.clone()], None).await.unwrap();
    let revision = client.put("there", "1", None).await.unwrap().header().unwrap().revision();

    // Nobody may decide anything: the follower and the witness stand still.
    pair.witness().signal(Signal::SIGSTOP);
    pair.node(follower).signal(Signal::SIGSTOP);
    let standby = pair.postgres(follower);
    standby.iter().for_each(|pid| kill(*pid, Signal::SIGSTOP).unwrap());
    let mut writer = Client::connect([url.clone()], None).await.unwrap();
    let put = tokio::spawn(async move { writer.put("ghost", "1", None).await });
    let database = pair.database(leader);
    let cancelled = database.session("application_name = 'duet writer' AND wait_event = 'SyncRep'").await;
    let postgres = database.connect().await;
    postgres.execute("SELECT pg_cancel_backend($1)", &[&cancelled.as_raw()]).await.unwrap();
    // The row is there for whoever asks PostgreSQL itself.
    let shows = "SELECT count(*) FROM duet.log WHERE rev > $1";
    let began = Instant::now();
    while postgres.query_one(shows, &[&revision]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(began.elapsed() < crate::common::process::PATIENCE, "the commit doesn't end");
    }

    let mut events = client.watch("ghost", Some(WatchOptions::new().with_start_revision(revision + 1))).await;
    let (mut serializable, began) = (0, Instant::now());
    while began.elapsed() < LOOKED_FOR {
        for options in [GetOptions::new(), GetOptions::new().with_serializable()] {
            let asked = tokio::time::timeout(ANSWER, client.get("ghost", Some(options.clone()))).await;
            if let Ok(Ok(answer)) = asked {
                assert_eq!(answer.kvs().len(), 0, "it is read before the follower has it");
                assert_eq!(answer.header().unwrap().revision(), revision);
                serializable += 1;
            }
        }
        if let Ok(stream) = &mut events
            && let Ok(Ok(Some(response))) = tokio::time::timeout(ANSWER, stream.message()).await
        {
            assert_eq!(response.events().len(), 0, "it is watched before the follower has it");
        }
    }
    println!("{serializable} reads were answered without it");
    assert!(!put.is_finished() || put.await.unwrap().is_err(), "it is acknowledged");

    standby.iter().for_each(|pid| kill(*pid, Signal::SIGCONT).unwrap());
    pair.node(follower).signal(Signal::SIGCONT);
    pair.witness().signal(Signal::SIGCONT);
    let leads = pair.until_paired().await;
    let mut client = Client::connect([pair.urls()[leads].clone()], None).await.unwrap();
    let found = client.get("ghost", None).await.unwrap().kvs().len();
    // Whichever it is, it stays so.
    pair.lose(leads);
    pair.until_open(1 - leads).await;
    let mut client = Client::connect([pair.urls()[1 - leads].clone()], None).await.unwrap();
    assert_eq!(client.get("ghost", None).await.unwrap().kvs().len(), found, "what was read is not lost");
}
