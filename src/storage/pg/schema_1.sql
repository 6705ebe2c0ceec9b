-- Version 1 of Duet's schema. Run once, in one transaction, by the one writer.

CREATE SCHEMA IF NOT EXISTS duet;
COMMENT ON SCHEMA duet IS 'Duet, an etcd-compatible datastore. Look through the views; change nothing by hand.';

-- One row: what is stored once.
CREATE TABLE duet.meta (
    one_row        boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    schema_version integer NOT NULL,
    cluster_id     bigint  NOT NULL CHECK (cluster_id <> 0),
    member_id      bigint  NOT NULL CHECK (member_id <> 0),
    epoch          bigint  NOT NULL,
    compacted      bigint  NOT NULL,
    lessor_clock   bigint  NOT NULL,
    advertise      text[]  NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE duet.meta IS 'One row. compacted = -1: never; cluster_id and member_id are unsigned 64-bit numbers stored as signed ones.';

-- The history: one row for each change of one key, only ever appended, and deleted by compaction.
-- Fixed-width columns first: no padding. Why no other index, and the storage options: docs/adr/0001-log-table.md.
CREATE TABLE duet.log (
    rev        bigint  NOT NULL,
    create_rev bigint  NOT NULL,
    version    bigint  NOT NULL,
    lease      bigint  NOT NULL,
    sub        integer NOT NULL,
    key        bytea   NOT NULL,
    value      bytea,
    PRIMARY KEY (rev, sub)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.2,
    vacuum_truncate = false,
    toast.autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_threshold = 5000,
    toast.vacuum_truncate = false
);
-- Every statement finds its rows by (rev, sub), of which nobody needs statistics to know that it is the way. By default ANALYZE reads up to
-- 30,000 pages each time that the log has grown by a fifth, beside the writer: a fifth of PostgreSQL's CPU under load.
ALTER TABLE duet.log
    ALTER rev SET STATISTICS 10,
    ALTER create_rev SET STATISTICS 0,
    ALTER version SET STATISTICS 0,
    ALTER lease SET STATISTICS 0,
    ALTER sub SET STATISTICS 0,
    ALTER key SET STATISTICS 0,
    ALTER value SET STATISTICS 0;
-- Servers can be built without lz4; theirs stays pglz, which only costs more CPU.
DO $$ BEGIN
    ALTER TABLE duet.log ALTER value SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END $$;
COMMENT ON TABLE duet.log IS 'Every change since the last compaction. value IS NULL: the key was deleted. See duet.current and duet.history().';

CREATE TABLE duet.lease (
    id     bigint PRIMARY KEY,
    ttl    bigint NOT NULL,
    expiry bigint
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE duet.lease IS 'ttl in seconds; expiry in milliseconds on the lessor''s own clock (duet.meta.lessor_clock).';

CREATE TABLE duet.alarm (
    member_id bigint  NOT NULL,
    alarm     integer NOT NULL,
    PRIMARY KEY (member_id, alarm)
);
COMMENT ON TABLE duet.alarm IS 'Raised alarms: 1 = NOSPACE, 2 = CORRUPT.';
