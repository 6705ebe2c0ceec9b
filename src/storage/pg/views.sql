-- Views for people. Made anew whenever the schema's version changes; nothing in Duet depends on them.

DROP VIEW IF EXISTS duet.current, duet.largest_keys, duet.busiest_keys;
DROP FUNCTION IF EXISTS duet.history(text), duet.key_text(bytea), duet.key_parts(text);

-- A key as text: as it is where it is valid UTF-8 without control characters, else with \ooo escapes. Never an error.
CREATE FUNCTION duet.key_text(key bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    escaped text := encode(key, 'escape');
BEGIN
    -- Nothing was escaped: plain ASCII, by far the most common.
    IF length(escaped) = length(key) THEN
        RETURN escaped;
    END IF;
    IF position('\x00'::bytea IN key) > 0 THEN
        RETURN escaped;
    END IF;
    RETURN convert_from(key, 'UTF8');
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
    RETURN escaped;
END
$$;

-- Kubernetes' parts of a key: /registry/RESOURCE/NAMESPACE/NAME, or /registry/GROUP/RESOURCE/[NAMESPACE/]NAME.
CREATE FUNCTION duet.key_parts(key text, OUT resource text, OUT namespace text, OUT name text)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    parts text[] := string_to_array(ltrim(key, '/'), '/');
    first integer := 3;
BEGIN
    IF cardinality(parts) < 3 OR NOT key LIKE '/%' THEN
        name := key;
        RETURN;
    END IF;
    resource := parts[2];
    IF cardinality(parts) > 3 AND parts[2] LIKE '%.%' THEN
        resource := parts[3] || '.' || parts[2];
        first := 4;
    ELSIF cardinality(parts) > 3 AND parts[2] = 'services' AND parts[3] IN ('specs', 'endpoints') THEN
        resource := CASE parts[3] WHEN 'specs' THEN 'services' ELSE 'endpoints' END;
        first := 4;
    ELSIF parts[2] = 'minions' THEN
        resource := 'nodes';
    END IF;
    IF cardinality(parts) > first THEN
        namespace := parts[first];
        first := first + 1;
    END IF;
    name := array_to_string(parts[first:], '/');
END
$$;

CREATE VIEW duet.current AS
WITH newest AS (
    SELECT DISTINCT ON (key) * FROM duet.log ORDER BY key, rev DESC, sub DESC
), live AS (
    SELECT *, duet.key_text(key) AS text FROM newest WHERE value IS NOT NULL
)
SELECT p.resource, p.namespace, p.name, l.text AS key, l.create_rev AS create_revision, l.rev AS mod_revision, l.version,
       l.lease, octet_length(l.value) AS size_bytes
FROM live l, duet.key_parts(l.text) p
ORDER BY l.key;
COMMENT ON VIEW duet.current IS 'The objects as they are now.';

CREATE FUNCTION duet.history(of_key text)
RETURNS TABLE (revision bigint, change text, version bigint, lease bigint, size_bytes integer, value bytea)
LANGUAGE sql STABLE AS $$
    SELECT rev, CASE WHEN value IS NULL THEN 'delete' WHEN version = 1 THEN 'create' ELSE 'update' END,
           version, lease, octet_length(value), value
    FROM duet.log
    WHERE duet.key_text(key) = of_key
    ORDER BY rev, sub
$$;
COMMENT ON FUNCTION duet.history IS 'What happened to a key since the last compaction, oldest first.';

CREATE VIEW duet.largest_keys AS
SELECT key, sum(size_bytes)::bigint AS bytes, max(size_bytes) AS largest_bytes, count(*) AS revisions
FROM (SELECT duet.key_text(key) AS key, octet_length(key) + coalesce(octet_length(value), 0) AS size_bytes FROM duet.log) AS sizes
GROUP BY key
ORDER BY bytes DESC;
COMMENT ON VIEW duet.largest_keys IS 'The keys that take most room, all their kept revisions together.';

CREATE VIEW duet.busiest_keys AS
SELECT duet.key_text(key) AS key, count(*) AS revisions, min(rev) AS first_revision, max(rev) AS last_revision
FROM duet.log
GROUP BY log.key
ORDER BY revisions DESC;
COMMENT ON VIEW duet.busiest_keys IS 'The keys that changed most often since the last compaction.';
