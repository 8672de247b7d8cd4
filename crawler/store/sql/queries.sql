-- Queries with names. Places in {braces} are filled with quoted identifiers and with numbers, never with a user's text.
-- The part of a table is the table into which one run loads: pages_rN of pages.

-- name: schema-is-there
SELECT to_regclass('runs') IS NOT NULL
   AND to_regclass('pages') IS NOT NULL
   AND to_regclass('pages_current') IS NOT NULL;

-- name: hide-notices
-- To the end of the transaction: what IF NOT EXISTS says of a table that is there need not be sent.
SET LOCAL client_min_messages = warning;

-- name: lock-schema
-- Held until the end of the transaction. The number is arbitrary.
SELECT pg_advisory_xact_lock(7310579615327182);

-- name: find-run
SELECT run_id, name, spec::text AS spec, epoch, state, counts::text AS counts, created_at, finished_at
FROM runs WHERE name = $1;

-- name: list-runs
SELECT run_id, name, spec::text AS spec, epoch, state, counts::text AS counts, created_at, finished_at
FROM runs ORDER BY run_id;

-- name: make-run
INSERT INTO runs (name, spec, epoch) VALUES ($1, $2::text::jsonb, $3) RETURNING run_id;

-- name: change-epoch
UPDATE runs SET epoch = $2 WHERE run_id = $1;

-- name: void-epoch
-- The new epoch is one that no Redis has, so whoever opens the run next rebuilds it.
UPDATE runs SET epoch = 'void-' || md5(random()::text) WHERE run_id = $1 AND epoch = $2;

-- name: epoch
SELECT epoch FROM runs WHERE run_id = $1;

-- name: make-pages-part
-- The CHECK lets Postgres attach the part later without reading it.
CREATE TABLE {part} (LIKE pages INCLUDING ALL, CHECK (run_id = {run_id}));

-- name: make-table
CREATE TABLE IF NOT EXISTS {table} (run_id integer NOT NULL, digest bytea NOT NULL, {columns})
PARTITION BY LIST (run_id);

-- name: make-table-part
-- The CHECK lets Postgres attach the part later without reading it.
CREATE TABLE {part} (LIKE {table} INCLUDING ALL, CHECK (run_id = {run_id}));

-- name: is-there
-- Whether there is a table or view of this name.
SELECT to_regclass($1) IS NOT NULL;

-- name: make-view
-- The run that was published last, or nothing.
CREATE VIEW {view} AS
    SELECT * FROM {table}
    WHERE run_id = (SELECT run_id FROM runs WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT 1);

-- name: columns-of
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_attribute a
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: changed-parts
-- The parts whose columns differ from those of the table that they will be part of.
SELECT part FROM unnest($1::text[], $2::text[]) AS pair(whole, part)
WHERE ARRAY(SELECT (attname, atttypid, atttypmod)::text FROM pg_attribute
            WHERE attrelid = to_regclass(whole) AND attnum > 0 AND NOT attisdropped ORDER BY attname)
   <> ARRAY(SELECT (attname, atttypid, atttypmod)::text FROM pg_attribute
            WHERE attrelid = to_regclass(part) AND attnum > 0 AND NOT attisdropped ORDER BY attname);

-- name: is-partitioned
SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = to_regclass($1));

-- name: make-example
-- A table with the columns of the job, to compare them, as Postgres writes them, with those of a table that exists.
CREATE TEMP TABLE example (run_id integer NOT NULL, digest bytea NOT NULL, {columns});

-- name: drop-example
DROP TABLE pg_temp.example;

-- name: count-outcomes
SELECT outcome, count(*) AS keys FROM {part} GROUP BY outcome;

-- name: finish-run
UPDATE runs SET state = 'complete', counts = $2::text::jsonb, finished_at = now(), published_at = now()
WHERE run_id = $1;

-- name: final-counts
-- No row unless the run is complete.
SELECT counts::text FROM runs WHERE run_id = $1 AND state = 'complete';

-- name: delete-failed
-- All failed pages. With $1 only those whose reason contains this text, in upper or lower case.
WITH deleted AS (
    DELETE FROM {part} WHERE outcome = 'failed' AND ($1::text IS NULL OR position(lower($1) IN lower(reason)) > 0)
    RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: reopen-run
-- The new epoch is one that no Redis has, so whoever opens the run next rebuilds it.
UPDATE runs SET state = 'running', counts = NULL, finished_at = NULL, epoch = 'void-' || md5(random()::text)
WHERE run_id = $1;

-- name: attach
ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES IN ({run_id});

-- name: digests
SELECT outcome, digest FROM {part};

-- name: lock-name
-- Two processes that make a run of the same name wait for each other.
SELECT pg_advisory_xact_lock(7310580, hashtext($1));

-- name: lock-run
-- Two processes that finish the same run wait for each other.
SELECT pg_advisory_xact_lock(7310579, $1);

-- name: batch-timeouts
-- A batch fails when it waits longer for a lock. Postgres ends the session of a worker that is frozen within a batch.
SELECT set_config('lock_timeout', '10s', true), set_config('idle_in_transaction_session_timeout', '30s', true);

-- name: make-staging
CREATE TEMP TABLE IF NOT EXISTS {staging} (LIKE {part} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;

-- name: merge-staging
-- A page that is stored already stays as it is. A key that is in the batch twice is inserted once.
-- Returns the digests that were inserted.
INSERT INTO {part} SELECT DISTINCT ON (digest) * FROM {staging} ON CONFLICT DO NOTHING RETURNING digest;

-- name: audit-settings
SELECT set_config('idle_in_transaction_session_timeout', '0', true), set_config('client_min_messages', 'warning', true);

-- name: make-audit-source
CREATE TEMP TABLE audit_source (digest bytea NOT NULL) ON COMMIT DROP;

-- name: audit-source
-- How many keys the source has, how many of them have no page, and how many pages have no key in the source.
SELECT count(s.digest) AS keys,
       count(*) FILTER (WHERE p.digest IS NULL) AS missing,
       count(*) FILTER (WHERE s.digest IS NULL) AS unknown
FROM (SELECT DISTINCT digest FROM audit_source) s FULL JOIN (SELECT DISTINCT digest FROM {part}) p USING (digest);

-- name: missing-digests
SELECT DISTINCT digest FROM audit_source s
WHERE NOT EXISTS (SELECT FROM {part} p WHERE p.digest = s.digest) LIMIT $1;

-- name: unknown-keys
SELECT key FROM {part} p
WHERE NOT EXISTS (SELECT FROM audit_source s WHERE s.digest = p.digest) ORDER BY key LIMIT $1;

-- name: count-digests
SELECT count(DISTINCT digest) FROM {part};

-- name: orphan-records
-- Records whose key has no stored page.
WITH orphans AS MATERIALIZED (
    SELECT r.digest FROM {part} r
    WHERE NOT EXISTS (SELECT FROM {pages} p WHERE p.digest = r.digest AND p.outcome = 'stored')
)
SELECT (SELECT count(*) FROM orphans) AS records,
       ARRAY(SELECT DISTINCT encode(digest, 'hex') FROM orphans ORDER BY 1 LIMIT $1) AS examples;

-- name: is-attached
SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass($1) AND inhrelid = to_regclass($2));

-- name: make-audit-requests
CREATE TEMP TABLE audit_requests (key text NOT NULL) ON COMMIT DROP;

-- name: audit-requests
-- Keys in the log of an upstream: all, different ones, and examples that were requested more than once.
SELECT count(*) AS total, count(DISTINCT key) AS distinct,
       ARRAY(SELECT key FROM audit_requests GROUP BY key HAVING count(*) > 1 ORDER BY count(*) DESC, key LIMIT $1)
           AS examples
FROM audit_requests;

-- name: idle-sessions
-- Sessions that have been idle in a transaction for more than $1 seconds.
SELECT pid, floor(extract(epoch FROM clock_timestamp() - state_change))::bigint AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
  AND state_change < clock_timestamp() - make_interval(secs => $1)
ORDER BY pid;

-- name: staging-tables
-- Staging tables of other sessions. The temporary schema of a session has the session's number in its name. A table
-- that a crash of Postgres left behind has no session, and is not counted. Before version 16 Postgres does not tell
-- this, and such a table is counted until Postgres drops it.
SELECT count(*)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = $1 AND n.nspname LIKE 'pg\_temp\_%' AND n.oid <> pg_my_temp_schema()
  AND (current_setting('server_version_num')::int < 160000
       OR pg_stat_get_backend_pid(substring(n.nspname FROM '\d+$')::int) IS NOT NULL);
