//! Where the figures in docs/adr/0001 to 0003 come from: ways to store the log, to write a batch and to compact, in turn, on a
//! PostgreSQL of its own.
//!
//!     cargo run --release --example measure_log -- [table | statement | wal | compaction | churn] [rounds]

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use duet::storage::pg::{PgLog, PgOptions};
use duet::storage::{Batch, LeaseRow, Log, LogRow, Reader, Writer};
use duet::supervisor::postgres::{Postgres, PostgresOptions};
use duet::types::{Rev, Revision};
use futures_util::FutureExt;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "all".to_owned());
    let rounds: usize = arguments.next().map_or(Ok(5), |n| n.parse())?;
    let dir = tempfile::Builder::new().prefix("duet-measure-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let postgres = Postgres::start(PostgresOptions::new(dir.path().join("data"))).await?;
    let wanted = |name: &str| what == "all" || what == name;
    let bench = Bench { client: connect(&postgres).await?, rounds };
    if wanted("table") {
        bench.tables().await?;
    }
    if wanted("statement") {
        bench.statements().await?;
    }
    if wanted("wal") {
        bench.wal().await?;
    }
    if wanted("compaction") {
        bench.compaction(&postgres).await?;
    }
    if wanted("churn") {
        bench.churn(&postgres).await?;
    }
    postgres.stop(Duration::from_secs(30)).await;
    Ok(())
}

/// Nanoseconds that a process was on a CPU: what other load on the machine hardly changes.
fn cpu_ns(pid: i32) -> Result<u64, Error> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().next().ok_or("no figure")?.parse()?)
}

async fn connect(postgres: &Postgres) -> Result<Client, Error> {
    let (client, connection) = postgres.connect_config().connect(NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("SET plan_cache_mode = force_generic_plan; SET work_mem = '64MB'").await?;
    Ok(client)
}

/// About as compressible as a pod in protobuf: words from a small vocabulary and random hexadecimal digits.
fn value(rng: &mut SmallRng, size: usize) -> Vec<u8> {
    const WORDS: [&str; 12] = [
        "kubernetes.io/",
        "metadata",
        "containers",
        "resourceVersion",
        "f:status",
        "volumeMounts",
        "default",
        "ServiceAccount",
        "app",
        "tolerations",
        "node.kubernetes.io/not-ready",
        "image",
    ];
    let mut text = Vec::with_capacity(size + 64);
    while text.len() < size {
        text.extend_from_slice(WORDS[rng.random_range(0..WORDS.len())].as_bytes());
        let digits: u32 = rng.random();
        text.extend_from_slice(format!("{digits:08x}\n").as_bytes());
    }
    text.truncate(size);
    text
}

/// One way to write batches.
struct Way {
    name: String,
    /// What makes `m.log`.
    table: String,
    /// What a batch is written with.
    form: Form,
    rows: usize,
    value_bytes: usize,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Unnest,
    UnnestExists,
    UnnestUnguarded,
    Values,
    Copy,
}

const COLUMNS: &str = "rev bigint NOT NULL, create_rev bigint NOT NULL, version bigint NOT NULL, lease bigint NOT NULL, sub integer NOT NULL, \
    key bytea NOT NULL, value bytea";
const PLAIN: &str = "PRIMARY KEY (rev, sub)) WITH (autovacuum_enabled = off)";

fn table(rest: &str) -> String {
    format!("CREATE TABLE m.log ({COLUMNS}, {rest}")
}

#[derive(Clone, Copy, Default)]
struct Figures {
    rows_per_second: f64,
    cpu_us_per_row: f64,
    wal_bytes_per_row: f64,
    disk_bytes_per_row: f64,
}

struct Bench {
    client: Client,
    rounds: usize,
}

impl Bench {
    /// Runs all ways in turn, `rounds` times, and prints medians and the ratio to the first.
    async fn compare(&self, title: &str, ways: &[Way]) -> Result<(), Error> {
        let mut results: Vec<Vec<Figures>> = vec![Vec::new(); ways.len()];
        for round in 0..self.rounds {
            for (way, results) in ways.iter().zip(&mut results) {
                results.push(self.run(way, round as u64).await?);
            }
        }
        println!(
            "\n### {title}\n\n| way | backend CPU µs/row | rows/s | ratio of rows/s | WAL bytes/row | disk bytes/row |\n|---|---|---|---|---|---|"
        );
        for (way, figures) in ways.iter().zip(&results) {
            let ratios = figures.iter().zip(&results[0]).map(|(a, b)| a.rows_per_second / b.rows_per_second).collect();
            let of = |field: fn(&Figures) -> f64| median(figures.iter().map(field).collect());
            println!(
                "| {} | {:.1} | {:.0} | {:.2} | {:.0} | {:.0} |",
                way.name,
                of(|f| f.cpu_us_per_row),
                of(|f| f.rows_per_second),
                median(ratios),
                of(|f| f.wal_bytes_per_row),
                of(|f| f.disk_bytes_per_row)
            );
        }
        Ok(())
    }

    async fn run(&self, way: &Way, seed: u64) -> Result<Figures, Error> {
        let client = &self.client;
        client
            .batch_execute(&format!(
                "DROP SCHEMA IF EXISTS m CASCADE; CREATE SCHEMA m; CREATE TABLE m.meta (epoch bigint); INSERT INTO m.meta VALUES (1); {};",
                way.table
            ))
            .await?;
        client.batch_execute("SELECT set_config('duet.batch', '0', false)").await?;
        client.batch_execute("CHECKPOINT").await?;
        let mut rng = SmallRng::seed_from_u64(seed);
        let values: Vec<Vec<u8>> = (0..64).map(|_| value(&mut rng, way.value_bytes)).collect();
        let statement = match way.form {
            Form::Copy => None,
            form => Some(client.prepare(&sql(form, way.rows)).await?),
        };
        let wal = self.wal_position().await?;
        let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let cpu = cpu_ns(backend)?;
        let began = Instant::now();
        let mut flying: VecDeque<Sending<'_>> = VecDeque::new();
        let mut batches = 0;
        // At least a second, and enough bytes that the disk takes part.
        while began.elapsed() < Duration::from_millis(1200) {
            let rows: Vec<Row> = (0..way.rows).map(|n| Row::new(batches * way.rows + n, &values)).collect();
            batches += 1;
            let mut sending: Sending<'_> = match &statement {
                None => Box::pin(copy(client, rows)),
                Some(statement) => Box::pin(write(client, statement.clone(), way.form, batches, rows)),
            };
            if (&mut sending).now_or_never().is_none() {
                flying.push_back(sending);
            }
            while flying.len() >= way.depth {
                flying.pop_front().expect("not empty").await?;
            }
        }
        for answer in flying {
            answer.await?;
        }
        let seconds = began.elapsed().as_secs_f64();
        let cpu = cpu_ns(backend)? - cpu;
        let wal_bytes = self.wal_position().await? - wal;
        let count: i64 = client.query_one("SELECT count(*) FROM m.log", &[]).await?.get(0);
        assert_eq!(count, (batches * way.rows) as i64, "every batch was applied");
        let disk: i64 = client.query_one("SELECT pg_total_relation_size('m.log')", &[]).await?.get(0);
        let count = count as f64;
        Ok(Figures {
            rows_per_second: count / seconds,
            cpu_us_per_row: cpu as f64 / 1000.0 / count,
            wal_bytes_per_row: wal_bytes as f64 / count,
            disk_bytes_per_row: disk as f64 / count,
        })
    }

    async fn wal_position(&self) -> Result<i64, Error> {
        Ok(self.client.query_one("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint", &[]).await?.get(0))
    }

    async fn tables(&self) -> Result<(), Error> {
        let variants = [
            ("EXTENDED, pglz (PostgreSQL's default)", String::new()),
            ("EXTENDED, lz4", "; ALTER TABLE m.log ALTER value SET COMPRESSION lz4".to_owned()),
            ("EXTERNAL", "; ALTER TABLE m.log ALTER value SET STORAGE EXTERNAL".to_owned()),
            (
                "EXTERNAL, target 8160",
                "; ALTER TABLE m.log ALTER value SET STORAGE EXTERNAL; ALTER TABLE m.log SET (toast_tuple_target = 8160)"
                    .to_owned(),
            ),
            (
                "lz4, target 8160",
                "; ALTER TABLE m.log ALTER value SET COMPRESSION lz4; ALTER TABLE m.log SET (toast_tuple_target = 8160)"
                    .to_owned(),
            ),
            (
                "lz4, target 128",
                "; ALTER TABLE m.log ALTER value SET COMPRESSION lz4; ALTER TABLE m.log SET (toast_tuple_target = 128)"
                    .to_owned(),
            ),
            (
                "lz4, index (key, rev)",
                "; ALTER TABLE m.log ALTER value SET COMPRESSION lz4; CREATE INDEX ON m.log (key, rev)".to_owned(),
            ),
            (
                "lz4, fillfactor 90",
                "; ALTER TABLE m.log ALTER value SET COMPRESSION lz4; ALTER TABLE m.log SET (fillfactor = 90)".to_owned(),
            ),
        ];
        for value_bytes in [512, 1024, 4096, 16_384] {
            let ways: Vec<Way> = variants
                .iter()
                .map(|(name, alter)| Way {
                    name: (*name).to_owned(),
                    table: format!("{}{alter}", table(PLAIN)),
                    form: Form::Unnest,
                    rows: 64,
                    value_bytes,
                    depth: 2,
                })
                .collect();
            self.compare(&format!("Table, 64 rows a batch, values of {value_bytes} bytes"), &ways).await?;
        }
        Ok(())
    }

    async fn statements(&self) -> Result<(), Error> {
        let lz4 = format!("{}; ALTER TABLE m.log ALTER value SET COMPRESSION lz4", table(PLAIN));
        let way = |name: &str, form, rows, depth| Way {
            name: name.to_owned(),
            table: lz4.clone(),
            form,
            rows,
            value_bytes: 1024,
            depth,
        };
        for rows in [1, 8, 64, 256] {
            let ways = [
                way("unnest, guarded, depth 1", Form::Unnest, rows, 1),
                way("unnest, guard as WHERE EXISTS, depth 1", Form::UnnestExists, rows, 1),
                way("unnest, no guard, depth 1", Form::UnnestUnguarded, rows, 1),
                way("VALUES, guarded, depth 1", Form::Values, rows, 1),
                way("COPY, no guard possible, depth 1", Form::Copy, rows, 1),
                way("unnest, guarded, depth 2", Form::Unnest, rows, 2),
                way("unnest, guarded, depth 4", Form::Unnest, rows, 4),
            ];
            self.compare(&format!("Statement, {rows} rows of 1 KiB a batch"), &ways).await?;
        }
        Ok(())
    }

    async fn wal(&self) -> Result<(), Error> {
        let lz4 = format!("{}; ALTER TABLE m.log ALTER value SET COMPRESSION lz4", table(PLAIN));
        let set = |method: &str| format!("{lz4}; SET wal_compression = {method}");
        let ways: Vec<Way> = ["off", "lz4", "pglz", "zstd"]
            .iter()
            .map(|method| Way {
                name: (*method).to_owned(),
                table: set(method),
                form: Form::Unnest,
                rows: 64,
                value_bytes: 1024,
                depth: 2,
            })
            .collect();
        self.compare("wal_compression, 64 rows of 1 KiB a batch", &ways).await?;
        self.client.batch_execute("RESET wal_compression").await?;
        Ok(())
    }
}

struct Row<'a> {
    rev: i64,
    key: String,
    value: &'a [u8],
}

impl<'a> Row<'a> {
    fn new(n: usize, values: &'a [Vec<u8>]) -> Self {
        Self {
            rev: n as i64 + 2,
            key: format!("/registry/pods/namespace-{}/pod-{}", n % 50, n % 10_000),
            value: &values[n % values.len()],
        }
    }
}

const GUARD: &str = "WITH ok AS MATERIALIZED (SELECT set_config('duet.batch', $1, false) FROM m.meta \
    WHERE epoch = $2 AND current_setting('duet.batch', true) = $3)";
const INSERT: &str = "INSERT INTO m.log (rev, sub, create_rev, version, lease, key, value)";

fn sql(form: Form, rows: usize) -> String {
    match form {
        Form::Unnest => format!(
            "{GUARD} {INSERT} SELECT u.* FROM ok, unnest($4::bigint[], $5::int[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[], $10::bytea[]) u"
        ),
        Form::UnnestExists => format!(
            "{GUARD} {INSERT} SELECT u.* FROM unnest($4::bigint[], $5::int[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[], $10::bytea[]) u \
             WHERE EXISTS (SELECT FROM ok)"
        ),
        Form::UnnestUnguarded => format!(
            "{INSERT} SELECT u.* FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bytea[]) u"
        ),
        Form::Values => {
            let row = |n: usize| {
                let p = 4 + n * 7;
                format!(
                    "(${}::bigint,${}::int,${}::bigint,${}::bigint,${}::bigint,${}::bytea,${}::bytea)",
                    p,
                    p + 1,
                    p + 2,
                    p + 3,
                    p + 4,
                    p + 5,
                    p + 6
                )
            };
            let rows: Vec<String> = (0..rows).map(row).collect();
            format!("{GUARD} {INSERT} SELECT u.* FROM ok, (VALUES {}) u", rows.join(","))
        }
        Form::Copy => String::new(),
    }
}

async fn write(client: &Client, statement: Statement, form: Form, batch: usize, rows: Vec<Row<'_>>) -> Result<(), Error> {
    let (number, previous, epoch) = (batch.to_string(), (batch - 1).to_string(), 1_i64);
    let (zero, one) = (0_i32, 1_i64);
    let revs: Vec<i64> = rows.iter().map(|r| r.rev).collect();
    let subs = vec![zero; rows.len()];
    let ones = vec![one; rows.len()];
    let keys: Vec<&[u8]> = rows.iter().map(|r| r.key.as_bytes()).collect();
    let values: Vec<&[u8]> = rows.iter().map(|r| r.value).collect();
    let guard: [&(dyn ToSql + Sync); 3] = [&number, &epoch, &previous];
    let arrays: [&(dyn ToSql + Sync); 7] = [&revs, &subs, &revs, &ones, &ones, &keys, &values];
    let mut parameters: Vec<&(dyn ToSql + Sync)> = Vec::new();
    if form != Form::UnnestUnguarded {
        parameters.extend(guard);
    }
    if form == Form::Values {
        for n in 0..rows.len() {
            let row: [&(dyn ToSql + Sync); 7] = [&revs[n], &zero, &revs[n], &one, &one, &keys[n], &values[n]];
            parameters.extend(row);
        }
    } else {
        parameters.extend(arrays);
    }
    let count = client.execute(&statement, &parameters).await?;
    assert_eq!(count, rows.len() as u64);
    Ok(())
}

async fn copy(client: &Client, rows: Vec<Row<'_>>) -> Result<(), Error> {
    use tokio_postgres::binary_copy::BinaryCopyInWriter;
    use tokio_postgres::types::Type;
    let sink = client.copy_in("COPY m.log (rev, sub, create_rev, version, lease, key, value) FROM STDIN BINARY").await?;
    let types = [Type::INT8, Type::INT4, Type::INT8, Type::INT8, Type::INT8, Type::BYTEA, Type::BYTEA];
    let mut writer = std::pin::pin!(BinaryCopyInWriter::new(sink, &types));
    for row in &rows {
        let key = row.key.as_bytes();
        writer.as_mut().write(&[&row.rev, &0_i32, &row.rev, &1_i64, &0_i64, &key, &row.value]).await?;
    }
    writer.finish().await?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * p) as usize]
}

/// The shipped writer, fed with updates of `keys` keys in turn; remembers what compaction may delete.
struct Load {
    writer: Box<dyn Writer>,
    reader: Arc<dyn Reader>,
    values: Vec<Bytes>,
    next: Revision,
    newest: BTreeMap<u64, Revision>,
    obsolete: VecDeque<Revision>,
    keys: u64,
}

impl Load {
    async fn new(postgres: &Postgres, keys: u64, value_bytes: usize) -> Result<Self, Error> {
        let log = PgLog::new(PgOptions::local(postgres.connect_config())?)?;
        let writer = log.acquire(true, vec![]).await?;
        let mut rng = SmallRng::seed_from_u64(7);
        let values = (0..64).map(|_| Bytes::from(value(&mut rng, value_bytes))).collect();
        let next = writer.meta().last_revision.unwrap_or(1) + 1;
        Ok(Self { writer, reader: log.reader(), values, next, newest: BTreeMap::new(), obsolete: VecDeque::new(), keys })
    }

    /// Appends `rows` updates as one batch; milliseconds until it was durable.
    async fn batch(&mut self, rows: usize, leases: bool) -> Result<f64, Error> {
        let mut batch = Batch::default();
        for _ in 0..rows {
            let key = self.next as u64 % self.keys;
            if let Some(old) = self.newest.insert(key, self.next) {
                self.obsolete.push_back(old);
            }
            batch.rows.push(LogRow {
                rev: Rev::new(self.next, 0),
                key: Bytes::from(format!("/registry/leases/kube-node-lease/node-{key}")),
                value: Some(self.values[self.next as usize % self.values.len()].clone()),
                create_revision: 2,
                version: self.next,
                lease: 0,
            });
            self.next += 1;
        }
        if leases {
            batch.leases_put.push(LeaseRow { id: self.next % 50 + 1, ttl: 30, expiry: Some(self.next as u64) });
            batch.lessor_clock = Some(self.next as u64);
        }
        let began = Instant::now();
        self.writer.append(Arc::new(batch)).await?;
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    }

    fn take_obsolete(&mut self, count: usize) -> Vec<Rev> {
        let count = count.min(self.obsolete.len());
        self.obsolete.drain(..count).map(|main| Rev::new(main, 0)).collect()
    }
}

impl Bench {
    /// What a step of deletion costs, and what it does to a writer beside it.
    async fn compaction(&self, postgres: &Postgres) -> Result<(), Error> {
        println!("\n### Compaction, 1 KiB values, one writer of 16-row batches beside it\n");
        println!(
            "| way | rows deleted/s | step ms P50 | step ms P99 | append ms P50 | append ms P99 |\n|---|---|---|---|---|---|"
        );
        let steps = [0, 100, 500, 1000, 4000];
        let mut found: Vec<(Vec<f64>, Vec<f64>, f64, f64)> = vec![(vec![], vec![], 0.0, 0.0); steps.len()];
        for _ in 0..self.rounds {
            for (step, (step_ms, append_ms, deleted, seconds)) in steps.iter().zip(&mut found) {
                self.client.batch_execute("DROP SCHEMA IF EXISTS duet CASCADE").await?;
                let mut load = Load::new(postgres, 200, 1024).await?;
                for _ in 0..80 {
                    load.batch(500, false).await?;
                }
                let (stop, reader) = (Arc::new(AtomicBool::new(false)), load.reader.clone());
                let mut work = load.take_obsolete(39_000);
                let (step, stopped, epoch) = (*step, stop.clone(), load.writer.meta().epoch);
                let began = Instant::now();
                let deleting = tokio::spawn(async move {
                    let mut ms = Vec::new();
                    if step == 0 {
                        tokio::time::sleep(Duration::from_millis(1000)).await;
                    } else {
                        while !work.is_empty() {
                            let rest = work.split_off(step.min(work.len()));
                            let one = Instant::now();
                            reader.delete(epoch, std::mem::replace(&mut work, rest)).await.map_err(|e| e.to_string())?;
                            ms.push(one.elapsed().as_secs_f64() * 1000.0);
                        }
                    }
                    stopped.store(true, Ordering::Relaxed);
                    Ok::<_, String>((ms, began.elapsed().as_secs_f64()))
                });
                while !stop.load(Ordering::Relaxed) && !deleting.is_finished() {
                    append_ms.push(load.batch(16, false).await?);
                }
                let (ms, took) = deleting.await??;
                step_ms.extend(ms);
                *seconds += took;
                *deleted += if step == 0 { 0.0 } else { 39_000.0 };
                load.writer.close().await;
            }
        }
        for (step, (step_ms, append_ms, deleted, seconds)) in steps.iter().zip(&mut found) {
            let name = if *step == 0 { "no compaction".to_owned() } else { format!("DELETE of {step} rows") };
            if step_ms.is_empty() {
                step_ms.push(0.0);
            }
            println!(
                "| {name} | {:.0} | {:.1} | {:.1} | {:.2} | {:.2} |",
                *deleted / *seconds,
                percentile(step_ms, 0.5),
                percentile(step_ms, 0.99),
                percentile(append_ms, 0.5),
                percentile(append_ms, 0.99)
            );
        }
        self.survivors().await
    }

    /// The alternative: partitions by revision, each dropped after its survivors were copied out.
    async fn survivors(&self) -> Result<(), Error> {
        println!("\nPartition of 40,000 rows of 1 KiB: copy the survivors into a table of their own, then drop it\n");
        println!("| survivors | copy and drop ms | DELETE of the others ms | WAL ratio |\n|---|---|---|---|");
        for percent in [1, 25, 75] {
            let mut figures = Vec::new();
            for round in 0..self.rounds as u64 {
                let value = value(&mut SmallRng::seed_from_u64(round), 1024);
                let fill = format!(
                    "DROP SCHEMA IF EXISTS m CASCADE; CREATE SCHEMA m; {}; CREATE TABLE m.kept (LIKE m.log INCLUDING ALL); \
                     ALTER TABLE m.log ALTER value SET COMPRESSION lz4",
                    table(PLAIN)
                );
                let mut measured = [(0.0, 0_i64); 2];
                for (way, measured) in measured.iter_mut().enumerate() {
                    self.client.batch_execute(&fill).await?;
                    let insert =
                        "INSERT INTO m.log SELECT n, n, 1, 0, 0, ('/registry/' || n)::bytea, $1 FROM generate_series(1, 40000) n";
                    self.client.execute(insert, &[&value]).await?;
                    self.client.batch_execute("CHECKPOINT").await?;
                    let wal = self.wal_position().await?;
                    let began = Instant::now();
                    let sql = if way == 0 {
                        format!("INSERT INTO m.kept SELECT * FROM m.log WHERE rev % 100 < {percent}; DROP TABLE m.log")
                    } else {
                        format!("DELETE FROM m.log WHERE rev % 100 >= {percent}")
                    };
                    self.client.batch_execute(&sql).await?;
                    *measured = (began.elapsed().as_secs_f64() * 1000.0, self.wal_position().await? - wal);
                }
                figures.push(measured);
            }
            let of = |pick: fn(&[(f64, i64); 2]) -> f64| median(figures.iter().map(pick).collect());
            println!(
                "| {percent} % | {:.0} | {:.0} | {:.2} |",
                of(|f| f[0].0),
                of(|f| f[1].0),
                of(|f| f[0].1 as f64 / f[1].1 as f64)
            );
        }
        Ok(())
    }

    /// An hour of 200 nodes that renew their leases every 10 s, and more: 200,000 updates with compaction behind them. The size
    /// must reach a steady state.
    async fn churn(&self, postgres: &Postgres) -> Result<(), Error> {
        println!("\n### Churn: 200,000 updates of 200 keys (512 bytes), compaction keeps the last 5,000 revisions\n");
        println!(
            "| updates | table MB | index MB | dead rows | lease + meta kB | append ms P50 | P99 | autovacuums |\n|---|---|---|---|---|---|---|---|"
        );
        self.client.batch_execute("DROP SCHEMA IF EXISTS duet CASCADE").await?;
        let mut load = Load::new(postgres, 200, 512).await?;
        let epoch = load.writer.meta().epoch;
        let mut append_ms = Vec::new();
        for n in 1..=12_500 {
            append_ms.push(load.batch(16, n % 10 == 0).await?);
            if load.obsolete.len() >= 6000 {
                let gone = load.take_obsolete(1000);
                load.reader.delete(epoch, gone).await?;
            }
            // Spread over the time that autovacuum needs to notice: an hour in a few minutes.
            if n % 25 == 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if n % 1250 == 0 {
                let sql = "SELECT pg_table_size('duet.log')::float8 / 1e6, pg_indexes_size('duet.log')::float8 / 1e6, n_dead_tup, \
                    ((pg_total_relation_size('duet.lease') + pg_total_relation_size('duet.meta')) / 1000)::bigint, autovacuum_count \
                    FROM pg_stat_user_tables WHERE relname = 'log' AND schemaname = 'duet'";
                let row = self.client.query_one(sql, &[]).await?;
                println!(
                    "| {} | {:.1} | {:.1} | {} | {} | {:.2} | {:.2} | {} |",
                    n * 16,
                    row.get::<_, f64>(0),
                    row.get::<_, f64>(1),
                    row.get::<_, i64>(2),
                    row.get::<_, i64>(3),
                    percentile(&mut append_ms, 0.5),
                    percentile(&mut append_ms, 0.99),
                    row.get::<_, i64>(4)
                );
                append_ms.clear();
            }
        }
        load.writer.close().await;
        Ok(())
    }
}
