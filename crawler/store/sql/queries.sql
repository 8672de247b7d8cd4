-- Named queries. {braces} take identifiers and numbers that were checked and quoted, never a user's text.

-- name: schema-is-there
SELECT to_regclass('runs') IS NOT NULL AND to_regclass('pages') IS NOT NULL AND to_regclass('pages_current') IS NOT NULL;

-- name: lock-schema
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
UPDATE runs SET epoch = 'void-' || md5(random()::text) WHERE run_id = $1 AND epoch = $2;

-- name: epoch
SELECT epoch FROM runs WHERE run_id = $1;

-- name: make-pages-part
CREATE TABLE {part} (LIKE pages INCLUDING ALL, CHECK (run_id = {run_id}));

-- name: make-table
CREATE TABLE IF NOT EXISTS {table} (run_id integer NOT NULL, digest bytea NOT NULL, {columns}) PARTITION BY LIST (run_id);

-- name: make-table-part
CREATE TABLE {part} (LIKE {table} INCLUDING ALL, CHECK (run_id = {run_id}));

-- name: is-there
SELECT to_regclass($1) IS NOT NULL;

-- name: make-view
CREATE VIEW {view} AS
    SELECT * FROM {table}
    WHERE run_id = (SELECT run_id FROM runs WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT 1);

-- name: columns-of
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_attribute a
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: is-partitioned
SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = to_regclass($1));

-- name: make-example
CREATE TEMP TABLE example (run_id integer NOT NULL, digest bytea NOT NULL, {columns});

-- name: drop-example
DROP TABLE pg_temp.example;

-- name: count-outcomes
SELECT outcome, count(*) AS keys FROM {part} GROUP BY outcome;

-- name: finish-run
UPDATE runs SET state = 'complete', counts = $2::text::jsonb, finished_at = now(), published_at = now()
WHERE run_id = $1;

-- name: final-counts
SELECT counts::text FROM runs WHERE run_id = $1 AND state = 'complete';

-- name: attach
ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES IN ({run_id});

-- name: digests
SELECT outcome, digest FROM {part};

-- name: lock-name
SELECT pg_advisory_xact_lock(7310580, hashtext($1));

-- name: lock-run
SELECT pg_advisory_xact_lock(7310579, $1);

-- name: batch-timeouts
SELECT set_config('lock_timeout', '10s', true), set_config('idle_in_transaction_session_timeout', '30s', true);

-- name: make-staging
CREATE TEMP TABLE IF NOT EXISTS {staging} (LIKE {part} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;

-- name: merge-staging
INSERT INTO {part} SELECT DISTINCT ON (digest) * FROM {staging} ON CONFLICT DO NOTHING RETURNING digest;
