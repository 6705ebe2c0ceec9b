//! Duet's tables: made on first use, brought up to date in steps, and refused when a newer Duet made them.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use super::session::unavailable;
use crate::storage::LogError;

/// `STEPS[n]` brings version n to version n + 1, in one transaction together with the new number.
const STEPS: &[&str] = &[include_str!("schema_1.sql")];
const VIEWS: &str = include_str!("views.sql");

/// Twelve plus four hexadecimal digits of a random UUID that are random in all of its versions.
const RANDOM_ID: &str =
    "('x' || (SELECT substr(u, 1, 12) || substr(u, 29, 4) FROM replace(gen_random_uuid()::text, '-', '') AS u))::bit(64)::bigint";

/// Makes or migrates the schema; whether there was something to do. Only for the session that holds the writer's lock. `ask` asks for the
/// version, if the tables were there when the session was opened.
pub async fn ensure(client: &Client, ask: Option<&Statement>) -> Result<bool, LogError> {
    let newest = i32::try_from(STEPS.len()).unwrap_or(i32::MAX);
    let found = version(client, ask).await?;
    if found > newest {
        return Err(LogError::Unusable(format!(
            "the database's schema \"duet\" has version {found}, and this Duet knows versions up to {newest}: a newer Duet made it; run that one"
        )));
    }
    for (from, step) in (0_i32..).zip(STEPS).skip(usize::try_from(found).unwrap_or_default()) {
        let to = from + 1;
        let record = if from == 0 {
            format!(
                "INSERT INTO duet.meta (schema_version, cluster_id, member_id, epoch, compacted, lessor_clock, advertise) \
                 VALUES ({to}, {RANDOM_ID}, {RANDOM_ID}, 0, -1, 0, '{{}}');"
            )
        } else {
            format!("UPDATE duet.meta SET schema_version = {to};")
        };
        tracing::info!(from, to, "bringing the database's schema up to date");
        client.batch_execute(&format!("BEGIN;{step}{record}{VIEWS}COMMIT;")).await.map_err(explain)?;
    }
    Ok(found < newest)
}

async fn version(client: &Client, ask: Option<&Statement>) -> Result<i32, LogError> {
    let row = if let Some(ask) = ask {
        client.query_opt(ask, &[]).await
    } else {
        let exists = client.query_one("SELECT to_regclass('duet.meta') IS NOT NULL", &[]).await.map_err(explain)?;
        if !exists.get::<_, bool>(0) {
            return Ok(0);
        }
        client.query_opt("SELECT schema_version FROM duet.meta", &[]).await
    };
    let row = row.map_err(explain)?;
    row.map(|row| row.get(0)).ok_or_else(|| {
        LogError::Unusable(
            "the database's table duet.meta is empty: restore the schema \"duet\" from a backup, or drop it".to_owned(),
        )
    })
}

fn explain(error: tokio_postgres::Error) -> LogError {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return LogError::Unusable(format!(
            "the database role may not make or use the schema \"duet\" ({}): GRANT CREATE ON DATABASE … TO it, or make it the schema's owner",
            super::session::text(&error)
        ));
    }
    unavailable(error)
}
