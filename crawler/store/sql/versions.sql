-- Queries about runs as versions of a corpus: held back, published, cancelled, pruned.

-- name: is-cancelled
SELECT EXISTS (SELECT FROM runs WHERE run_id = $1 AND state = 'cancelled');

-- name: compare-with-current
-- Of the keys that have rows in the part {before}: how many, and how many of them are gone from {part}, or not in it. And
-- how many keys have rows in {part}.
WITH before AS (
    SELECT digest FROM {before} WHERE outcome IN ('stored', 'unchanged') OR stale
), now AS (
    SELECT digest, outcome IN ('stored', 'unchanged') OR coalesce(stale, false) AS has_rows, outcome = 'gone' AS gone
    FROM {part}
)
SELECT count(before.digest) AS keys_before,
       count(*) FILTER (WHERE before.digest IS NOT NULL AND (now.digest IS NULL OR now.gone)) AS gone_since,
       count(*) FILTER (WHERE now.has_rows) AS keys_with_rows
FROM before FULL JOIN now USING (digest);

-- name: work-memory
-- To the end of the transaction.
SET LOCAL work_mem = '128MB';

-- name: roll-back
-- Point corpus $1, whose current run is $2, to the newest complete run before it that was published, and forget why that
-- was held back since then. No row without one.
WITH before AS (
    SELECT run_id, name FROM runs
    WHERE corpus = $1 AND run_id < $2 AND state = 'complete' AND published_at IS NOT NULL
    ORDER BY run_id DESC LIMIT 1
    FOR NO KEY UPDATE
), pointed AS (
    UPDATE corpora SET current_run = before.run_id FROM before
    WHERE corpora.corpus = $1 AND corpora.current_run = $2 RETURNING current_run
)
UPDATE runs SET shortfall = '' FROM pointed WHERE run_id = pointed.current_run RETURNING name;

-- name: cancel-run
-- No row when the run is complete, or when readers see it, and `retry` put keys back.
UPDATE runs SET state = 'cancelled'
WHERE run_id = $1 AND state <> 'complete' AND NOT EXISTS (SELECT FROM corpora WHERE current_run = $1)
RETURNING run_id;

-- name: steer-run
-- No row when the run is complete or cancelled.
UPDATE runs SET paused = $2, max_workers = $3 WHERE run_id = $1 AND state = 'running' RETURNING run_id;

-- name: close-cancelled
-- The new epoch is one that no Redis has: who still works on the run stores nothing any more.
UPDATE runs SET epoch = 'void-' || md5(random()::text), counts = $2::text::jsonb, reasons = $3::text::jsonb,
                finished_at = coalesce(finished_at, now())
WHERE run_id = $1 AND state = 'cancelled';

-- name: free-base
-- A complete run does not need its base any more. When one that is under way needs it, it stays that of both.
UPDATE runs SET base_run = NULL WHERE base_run = $1
   AND NOT EXISTS (SELECT FROM runs AS other WHERE other.base_run = $1 AND other.state = 'running');

-- name: delete-run
-- Neither a run that is under way, nor the current one, nor the base of another.
DELETE FROM runs WHERE run_id = $1 AND state <> 'running'
   AND NOT EXISTS (SELECT FROM corpora WHERE current_run = $1)
   AND NOT EXISTS (SELECT FROM runs AS other WHERE other.base_run = $1)
RETURNING run_id;

-- name: known-corpora
SELECT corpus FROM corpora ORDER BY corpus;

-- name: run-sizes
-- The bytes of each run's tables, with indexes, and whether readers see it. A table that is being dropped has none.
SELECT r.run_id, coalesce(bool_or(c.current_run = r.run_id), false) AS current, coalesce(sum(pg_total_relation_size(to_regclass(
           CASE WHEN c.schema = '' THEN '' ELSE quote_ident(c.schema) || '.' END || quote_ident(named || '_r' || r.run_id)
       ))), 0)::bigint AS bytes
FROM runs r JOIN corpora c USING (corpus), unnest(c.tables || ARRAY['pages', 'pages_found']) AS named
GROUP BY r.run_id;

-- name: orphan-parts
-- Tables into which a run loaded whose row was deleted: by their names, columns, constraint and owner they are ours. And
-- whether each is a partition still, or (`pending`) is half detached: somebody broke that off.
WITH place AS (
    SELECT ''::text AS schema, relnamespace AS namespace FROM pg_class WHERE oid = to_regclass('runs')
    UNION
    SELECT schema, to_regnamespace(quote_ident(schema))::oid FROM corpora WHERE schema <> ''
), named AS (
    SELECT DISTINCT c.schema, name FROM corpora c, unnest(c.tables || ARRAY['pages', 'pages_found']) AS name
), part AS (
    SELECT p.oid, n.schema, n.name, substr(p.relname, length(n.name) + 3)::integer AS run_id, to_regclass(
               CASE WHEN n.schema = '' OR n.name = 'pages' THEN '' ELSE quote_ident(n.schema) || '.' END
               || quote_ident(n.name)) AS whole
    FROM named n JOIN place USING (schema) JOIN pg_class p ON p.relnamespace = place.namespace
    WHERE p.relkind = 'r' AND p.relname LIKE '%\_r%' AND left(p.relname, length(n.name) + 2) = n.name || '_r'
      AND substr(p.relname, length(n.name) + 3) ~ '^[1-9][0-9]{0,8}$' AND pg_has_role(p.relowner, 'USAGE')
)
SELECT schema, name, part.run_id, pg_total_relation_size(part.oid) AS bytes,
       i.inhrelid IS NOT NULL AS attached, coalesce(i.inhdetachpending, false) AS pending
FROM part LEFT JOIN pg_inherits i ON i.inhrelid = part.oid
WHERE NOT EXISTS (SELECT FROM runs WHERE runs.run_id = part.run_id) AND (i.inhparent IS NULL OR i.inhparent = whole)
  AND CASE WHEN name = 'pages_found' THEN
          ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = part.oid AND attnum > 0 ORDER BY attnum)
          = ARRAY['digest', 'key', 'context', 'rule', 'refusal', 'depth', 'batch']
      ELSE
          EXISTS (SELECT FROM pg_constraint WHERE conrelid = part.oid AND contype = 'c'
                  AND pg_get_constraintdef(oid) = format('CHECK ((run_id = %s))', part.run_id))
          AND NOT EXISTS (
              SELECT FROM pg_attribute a WHERE a.attrelid = part.oid AND a.attnum > 0 AND NOT a.attisdropped
                 AND NOT EXISTS (SELECT FROM pg_attribute w WHERE w.attrelid = whole AND w.attname = a.attname
                                 AND w.atttypid = a.atttypid AND w.attnum > 0))
      END
ORDER BY part.run_id, schema, name;

-- name: newest-snapshot
-- Whatever is read by a snapshot that is older than this one.
SELECT pg_snapshot_xmax(pg_current_snapshot())::xid::text;

-- name: has-older-snapshots
-- Whether a query or a transaction still reads by a snapshot older than $1: it would miss a partition that is detached
-- now. Not the cursor of a source, nor who waits for a lock of ours.
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
      AND wait_event IS DISTINCT FROM 'advisory' AND application_name <> 'shardcrawl source' AND age(backend_xmin) > age($1::text::xid)
);

-- name: drop-snapshot
-- In a transaction a query with values keeps its snapshot until the next query, and one without values does not.
SELECT;

-- name: detach
-- It waits for readers without holding up others, and cannot run in a transaction.
ALTER TABLE {table} DETACH PARTITION {part} CONCURRENTLY;

-- name: finish-detach
ALTER TABLE {table} DETACH PARTITION {part} FINALIZE;

-- name: drop-part
DROP TABLE IF EXISTS {part};
