//! The one writer's session: one statement for each batch, pipelined.
//!
//! Each statement proves, in itself, that it may be applied: its first part finds a row only when the stored epoch is this
//! session's and the batch before it was committed by this very session. The latter is told by a session variable
//! (`duet.batch`), which is transactional: when a batch fails, its number is rolled back with it, and every batch that was
//! already sent behind it does nothing. This costs no row, no WAL and no round trip. The answer's row count tells which it was.
//!
//! It deliberately never cancels a statement: a cancelled wait for the standby would report success.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BufMut;
use postgres_types::ToSql;
use tokio_postgres::{Client, Statement};

use super::params::Array;
use super::recover;
use super::session::{self, Health, Session, unavailable};
use crate::storage::{AlarmRow, Batch, BoxFuture, LogError, LogRow, Meta, Writer};
use crate::types::{Epoch, LeaseId, Revision};

const CONFIRM_DEADLINE: Duration = Duration::from_secs(10);
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The guard: see the module. `set_config` is evaluated only for a row that passes.
macro_rules! guard {
    () => {
        "WITH ok AS MATERIALIZED (SELECT set_config('duet.batch', $1, false) FROM duet.meta \
         WHERE epoch = $2 AND current_setting('duet.batch', true) = $3)"
    };
}

macro_rules! insert_rows {
    () => {
        "INSERT INTO duet.log (rev, sub, create_rev, version, lease, key, value) \
         SELECT u.* FROM ok, unnest($4::bigint[], $5::int[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[], $10::bytea[]) AS u"
    };
}

const ROWS_ONLY: &str = concat!(guard!(), " ", insert_rows!());

const EVERYTHING: &str = concat!(
    guard!(),
    ", log_rows AS (",
    insert_rows!(),
    "), leases_put AS (INSERT INTO duet.lease AS l (id, ttl, expiry) SELECT u.* FROM ok, unnest($11::bigint[], $12::bigint[], $13::bigint[]) AS u \
       ON CONFLICT (id) DO UPDATE SET ttl = excluded.ttl, expiry = excluded.expiry)",
    ", leases_deleted AS (DELETE FROM duet.lease AS l USING ok, unnest($14::bigint[]) AS u(id) WHERE l.id = u.id)",
    ", alarms_put AS (INSERT INTO duet.alarm (member_id, alarm) SELECT u.* FROM ok, unnest($15::bigint[], $16::int[]) AS u ON CONFLICT DO NOTHING)",
    ", alarms_deleted AS (DELETE FROM duet.alarm AS a USING ok, unnest($17::bigint[], $18::int[]) AS u(member_id, alarm) \
       WHERE a.member_id = u.member_id AND a.alarm = u.alarm)",
    ", marks AS (UPDATE duet.meta SET compacted = coalesce($19, compacted), lessor_clock = coalesce($20, lessor_clock) FROM ok \
       WHERE $19::bigint IS NOT NULL OR $20::bigint IS NOT NULL)",
    " SELECT 1 FROM ok",
);

const BARRIER: &str = "WITH before AS (SELECT advertise FROM duet.meta) \
    UPDATE duet.meta SET epoch = epoch + 1, advertise = $1 RETURNING epoch, (SELECT advertise FROM before)";

const META: &str = "SELECT cluster_id, member_id, epoch, compacted, lessor_clock, \
    (SELECT rev FROM duet.log ORDER BY rev DESC LIMIT 1) FROM duet.meta";

const CONFIRM: &str =
    "SELECT 1 FROM duet.meta WHERE epoch = $1 AND current_setting('duet.batch', true) <> '' AND NOT pg_is_in_recovery()";

/// See the module.
pub struct PgWriter {
    session: Session,
    meta: Meta,
    statements: Statements,
    /// The number of the batch that was sent last.
    sent: u64,
}

/// Everything that a session as the writer asks PostgreSQL, prepared.
#[derive(Clone)]
pub struct Statements {
    pub version: Statement,
    pub barrier: Statement,
    pub meta: Statement,
    pub leases: Statement,
    pub alarms: Statement,
    pub compacted: Statement,
    pub tail: Statement,
    rows_only: Statement,
    everything: Statement,
    confirm: Statement,
}

impl Statements {
    /// All at once: one answer is waited for, not ten.
    pub async fn new(client: &Client) -> Result<Self, LogError> {
        let tail = format!("SELECT {} FROM duet.log WHERE rev > $1 ORDER BY rev, sub", recover::COLUMNS);
        let (version, barrier, meta, leases, alarms, compacted, tail, rows_only, everything, confirm) = tokio::try_join!(
            client.prepare("SELECT schema_version FROM duet.meta"),
            client.prepare(BARRIER),
            client.prepare(META),
            client.prepare("SELECT id, ttl, expiry FROM duet.lease ORDER BY id"),
            client.prepare("SELECT member_id, alarm FROM duet.alarm ORDER BY 1, 2"),
            client.prepare("SELECT compacted FROM duet.meta"),
            client.prepare(&tail),
            client.prepare(ROWS_ONLY),
            client.prepare(EVERYTHING),
            client.prepare(CONFIRM),
        )
        .map_err(unavailable)?;
        Ok(Self { version, barrier, meta, leases, alarms, compacted, tail, rows_only, everything, confirm })
    }
}

impl PgWriter {
    /// `session` holds the lock and has raised the epoch to `meta.epoch`.
    pub fn new(session: Session, statements: Statements, meta: Meta) -> Self {
        Self { session, meta, statements, sent: 0 }
    }
}

impl Writer for PgWriter {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn recover<'a>(
        &'a mut self,
        after: Revision,
        sink: &'a mut (dyn FnMut(Vec<LogRow>) + Send),
    ) -> BoxFuture<'a, Result<(), LogError>> {
        Box::pin(recover::recover(&self.session.client, &self.statements, after, sink))
    }

    fn append(&mut self, batch: Arc<Batch>) -> BoxFuture<'static, Result<(), LogError>> {
        if let Err(error) = self.session.health.check() {
            return Box::pin(std::future::ready(Err(not_sent(error))));
        }
        debug_assert!(batch.rows.is_sorted_by(|a, b| a.rev < b.rev), "rows strictly ascending");
        let previous = self.sent;
        self.sent += 1;
        let append = Append {
            client: self.session.client.clone(),
            health: self.session.health.clone(),
            statements: self.statements.clone(),
            epoch: self.meta.epoch,
            number: self.sent.to_string(),
            previous: previous.to_string(),
        };
        begin(Box::pin(append.run(batch)))
    }

    fn confirm(&mut self) -> BoxFuture<'static, Result<(), LogError>> {
        let (client, health) = (self.session.client.clone(), self.session.health.clone());
        let (statement, epoch) = (self.statements.confirm.clone(), self.meta.epoch);
        begin(Box::pin(async move {
            health.check()?;
            let answer = tokio::time::timeout(CONFIRM_DEADLINE, client.execute(&statement, &[&epoch])).await;
            match answer {
                Ok(Ok(1)) => health.check(),
                Ok(Ok(_)) => Err(health.fail(deposed(epoch))),
                Ok(Err(error)) => Err(health.fail(LogError::Unknown(session::text(&error)))),
                Err(_) => Err(LogError::Unavailable(format!("no answer from PostgreSQL within {CONFIRM_DEADLINE:?}"))),
            }
        }))
    }

    fn ended(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.session.ended.clone().cancelled_owned())
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // Behind all batches, which still commit: nothing is cancelled. The lock would go with the session, too, but only some
            // time after the connection has ended.
            let unlock = self.session.client.batch_execute("SELECT pg_advisory_unlock_all()");
            let _ = tokio::time::timeout(CLOSE_DEADLINE, unlock).await;
            self.session.close().await;
        })
    }
}

/// Polls a future once, so that its request is on its way, in order, before the caller does anything else.
fn begin<T: Send + 'static>(mut future: BoxFuture<'static, T>) -> BoxFuture<'static, T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Box::pin(std::future::ready(done)),
        Poll::Pending => future,
    }
}

struct Append {
    client: Arc<Client>,
    health: Health,
    statements: Statements,
    epoch: Epoch,
    number: String,
    previous: String,
}

impl Append {
    async fn run(self, batch: Arc<Batch>) -> Result<(), LogError> {
        let rows_only = batch.is_rows_only();
        let answer = if rows_only { self.rows_only(&batch).await } else { self.everything(&batch).await };
        // A warning came before the answer that it belongs to.
        if let Err(error @ LogError::Unknown(_)) = self.health.check() {
            return Err(error);
        }
        let expected = if rows_only { batch.rows.len() as u64 } else { 1 };
        match answer {
            Ok(count) if count == expected => Ok(()),
            Ok(0) => Err(self.refused().await),
            Ok(count) => Err(self.health.fail(LogError::Unknown(format!("PostgreSQL applied {count} of {expected} rows")))),
            Err(error) => Err(self.health.fail(session::classify(&error))),
        }
    }

    async fn rows_only(&self, batch: &Batch) -> Result<u64, tokio_postgres::Error> {
        let rows = RowColumns::of(&batch.rows);
        let [rev, sub, create, version, lease, key, value] = rows.parameters();
        let parameters: [&(dyn ToSql + Sync); 10] =
            [&self.number, &self.epoch, &self.previous, rev, sub, create, version, lease, key, value];
        self.client.execute(&self.statements.rows_only, &parameters).await
    }

    async fn everything(&self, batch: &Batch) -> Result<u64, tokio_postgres::Error> {
        let rows = RowColumns::of(&batch.rows);
        let [rev, sub, create, version, lease, key, value] = rows.parameters();
        let puts = &batch.leases_put[..];
        let (id, ttl) = (int8(puts, |l, out| int8_of(out, l.id)), int8(puts, |l, out| int8_of(out, l.ttl)));
        let expiry = int8(puts, |l, out| l.expiry.is_some_and(|at| int8_of(out, at.cast_signed())));
        let deleted = int8(&batch.leases_deleted, |id: &LeaseId, out| int8_of(out, *id));
        let member = |alarm: &AlarmRow, out: &mut _| int8_of(out, alarm.member_id.cast_signed());
        let kind = |alarm: &AlarmRow, out: &mut bytes::BytesMut| int4_of(out, alarm.alarm);
        let (put_member, put_kind) = (int8(&batch.alarms_put, member), int8(&batch.alarms_put, kind));
        let (gone_member, gone_kind) = (int8(&batch.alarms_deleted, member), int8(&batch.alarms_deleted, kind));
        let clock = batch.lessor_clock.map(u64::cast_signed);
        let parameters: [&(dyn ToSql + Sync); 20] = [
            &self.number,
            &self.epoch,
            &self.previous,
            rev,
            sub,
            create,
            version,
            lease,
            key,
            value,
            &id,
            &ttl,
            &expiry,
            &deleted,
            &put_member,
            &put_kind,
            &gone_member,
            &gone_kind,
            &batch.compacted,
            &clock,
        ];
        self.client.execute(&self.statements.everything, &parameters).await
    }

    /// Why the guard let nothing through.
    async fn refused(&self) -> LogError {
        if let Err(error) = self.health.check() {
            return error;
        }
        match self.client.query_opt("SELECT epoch FROM duet.meta", &[]).await {
            Ok(Some(row)) if row.get::<_, Epoch>(0) == self.epoch => self
                .health
                .fail(LogError::Refused("an earlier batch of this session failed, or the session was changed".to_owned())),
            Ok(_) => self.health.fail(deposed(self.epoch)),
            // The guard's answer was certain; only its cause isn't.
            Err(error) => self.health.fail(LogError::Refused(session::text(&error))),
        }
    }
}

/// What became of earlier batches of the session may be unknown; of this one it is certain.
fn not_sent(error: LogError) -> LogError {
    match error {
        LogError::Unknown(why) | LogError::Unavailable(why) => LogError::Refused(format!("not sent: {why}")),
        other => other,
    }
}

fn deposed(epoch: Epoch) -> LogError {
    LogError::Deposed(format!("epoch {epoch} is over"))
}

fn int8<T>(items: &[T], put: fn(&T, &mut bytes::BytesMut) -> bool) -> Array<'_, T> {
    Array { items, put }
}

fn int8_of(out: &mut bytes::BytesMut, n: i64) -> bool {
    out.put_i64(n);
    true
}

fn int4_of(out: &mut bytes::BytesMut, n: i32) -> bool {
    out.put_i32(n);
    true
}

/// The log's rows as the arrays that the statements take.
struct RowColumns<'a>([Array<'a, LogRow>; 7]);

impl<'a> RowColumns<'a> {
    fn of(rows: &'a [LogRow]) -> Self {
        let column = |put| Array { items: rows, put };
        Self([
            column(|row: &LogRow, out| int8_of(out, row.rev.main)),
            column(|row, out| int4_of(out, row.rev.sub)),
            column(|row, out| int8_of(out, row.create_revision)),
            column(|row, out| int8_of(out, row.version)),
            column(|row, out| int8_of(out, row.lease)),
            column(|row, out| {
                out.put_slice(&row.key);
                true
            }),
            column(|row, out| row.value.as_ref().map(|value| out.put_slice(value)).is_some()),
        ])
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 7] {
        self.0.each_ref().map(|column| column as &(dyn ToSql + Sync))
    }
}
