-- Queries with names. Places in {braces} are filled with quoted identifiers and with numbers, never with a user's text;
-- only the command `sql` has the user's own query, which Postgres has taken alone before, in `rows-as-json`.
-- The part of a table is the table into which one run loads: pages_rN of pages.

-- name: schema-is-there
SELECT to_regclass('runs') IS NOT NULL
   AND to_regclass('pages') IS NOT NULL
   AND to_regclass('pages_current') IS NOT NULL;

-- name: schema-version
SELECT version FROM schema_version;

-- name: make-schema-version
-- One row: the number of the newest migration in this database.
CREATE TABLE IF NOT EXISTS schema_version (
    version integer NOT NULL,
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row)
);

-- name: record-schema-version
INSERT INTO schema_version (version) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET version = excluded.version;

-- name: migration-timeout
-- Workers that want to write wait behind a migration that waits for a reader.
SET LOCAL lock_timeout = '5s';

-- name: hide-notices
-- To the end of the transaction: what IF NOT EXISTS says of a table that is there need not be sent.
SET LOCAL client_min_messages = warning;

-- name: lock-schema
-- Held until the end of the transaction, at most 10 s longer than its host is there. The number is arbitrary.
SELECT pg_advisory_xact_lock(7310579615327182), set_config('tcp_user_timeout', '10s', true);

-- name: end-when-silent
-- Postgres ends the session of a host that is gone within 10 s, and with it its locks. By default it does so after two
-- hours. Behind a pooler this is about the pooler's host. Where something is on its way to a reader who takes his time,
-- nothing is tried.
SELECT pg_catalog.set_config('tcp_keepalives_idle'::text, '4'::text, false),
  pg_catalog.set_config('tcp_keepalives_interval'::text, '2'::text, false),
  pg_catalog.set_config('tcp_keepalives_count'::text, '3'::text, false);

-- name: search-path
SELECT pg_catalog.current_schemas(true);

-- name: planted
-- What another role has put where our statements would find it: tables and views of the quoted names $1, functions of the names
-- $2, or with $3 of all names that Postgres has, and operators. Trusted are this role, superusers, and roles that this
-- one is a member of. It calls only what is in pg_catalog, with types that match exactly.
WITH me AS (
    SELECT oid, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user
), trusted AS (
    SELECT r.oid FROM pg_catalog.pg_roles r, me
    WHERE r.oid = me.oid OR r.rolsuper OR (NOT me.rolsuper AND pg_catalog.pg_has_role(r.oid, 'USAGE'::text))
), place AS (
    SELECT oid FROM pg_catalog.pg_namespace
    WHERE nspname = ANY(pg_catalog.current_schemas(false)) AND nspname <> 'pg_catalog'::name
), found AS (
    SELECT 'table or view'::text AS kind, c.relname AS name, c.relowner AS owner
    FROM pg_catalog.unnest($1::text[]) AS wanted(name)
    JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(wanted.name)::oid
    UNION ALL
    SELECT 'function'::text, p.proname, p.proowner FROM pg_catalog.pg_proc p
    WHERE p.pronamespace IN (SELECT oid FROM place) AND (p.proname = ANY($2::name[]) OR ($3::boolean AND p.proname IN (
        SELECT proname FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace::oid)))
    UNION ALL
    SELECT 'operator'::text, o.oprname, o.oprowner FROM pg_catalog.pg_operator o
    WHERE o.oprnamespace IN (SELECT oid FROM place)
      AND o.oprname IN (SELECT oprname FROM pg_catalog.pg_operator
                        WHERE oprnamespace = 'pg_catalog'::pg_catalog.regnamespace::oid)
)
SELECT kind, name, pg_catalog.pg_get_userbyid(owner) AS owner, current_user AS me
FROM found WHERE NOT (owner IN (SELECT oid FROM trusted)) LIMIT 1;

-- name: could-do-more
-- Whether the role that logged in could do more than read and write rows: start programs, or reach files of the server.
SELECT rolsuper OR pg_has_role(oid, 'pg_execute_server_program', 'MEMBER')
    OR pg_has_role(oid, 'pg_read_server_files', 'MEMBER') OR pg_has_role(oid, 'pg_write_server_files', 'MEMBER')
FROM pg_roles WHERE rolname = session_user;

-- name: read-with-path
-- To the end of the transaction.
SELECT pg_catalog.set_config('search_path'::text, $1::text, true);

-- name: read-slowly
-- The transaction of a cursor that is read as fast as keys are taken: it may be idle for days.
SELECT pg_catalog.set_config('idle_in_transaction_session_timeout'::text, '0'::text, true),
  pg_catalog.set_config('statement_timeout'::text, '0'::text, true),
  pg_catalog.set_config('application_name'::text, 'shardcrawl source'::text, true);

-- name: make-reader
-- The role as which `sql` reads, where the one that logged in could do more. Its password is for one login.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{reader}') THEN
        CREATE ROLE {reader};
        GRANT pg_read_all_data TO {reader};
    END IF;
    EXECUTE format(
        'ALTER ROLE {reader} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS '
        'PASSWORD ''{password}'' VALID UNTIL %L', now() + interval '1 minute'
    );
END
$$;

-- name: run-columns
-- What the next four queries read of a run.
run_id, name, spec::text AS spec, epoch, state, counts::text AS counts, created_at, finished_at,
reasons::text AS reasons, layout::text AS layout, corpus, base_run, content_hash, shortfall, published_at,
paused, max_workers;

-- name: find-run
SELECT {columns} FROM runs WHERE name = $1;

-- name: current-of-corpus
SELECT {columns} FROM runs WHERE run_id = (SELECT current_run FROM corpora WHERE corpus = $1);

-- name: list-runs
SELECT {columns} FROM runs ORDER BY run_id;

-- name: unfinished-runs
-- The newest ones.
SELECT {columns} FROM runs WHERE state NOT IN ('complete', 'cancelled') ORDER BY run_id DESC LIMIT $1;

-- name: make-run
INSERT INTO runs (name, spec, epoch, corpus, base_run) VALUES ($1, $2::text::jsonb, $3, $4, $5) RETURNING run_id;

-- name: rewrite-run
UPDATE runs SET spec = $2::text::jsonb, layout = $3::text::jsonb, content_hash = $4 WHERE run_id = $1;

-- name: known-runs
SELECT name FROM runs WHERE name = ANY($1::text[]);

-- name: change-epoch
UPDATE runs SET epoch = $2 WHERE run_id = $1;

-- name: void-epoch
-- The new epoch is one that no Redis has, so whoever opens the run next rebuilds it.
UPDATE runs SET epoch = 'void-' || md5(random()::text) WHERE run_id = $1 AND epoch = $2 AND state <> 'complete';

-- name: name-of-run
SELECT name FROM runs WHERE run_id = $1;

-- name: epoch
SELECT epoch FROM runs WHERE run_id = $1;

-- name: make-pages-part
-- The CHECK lets Postgres attach the part later without reading it.
CREATE TABLE {part} (LIKE pages INCLUDING ALL, CHECK (run_id = {run_id}));

-- name: index-ended
-- Keys that brought nothing are few, and people look for them: other rows cost this index no write.
CREATE INDEX ON {part} (outcome, digest) WHERE outcome NOT IN ('stored', 'unchanged');

-- name: make-table
CREATE TABLE IF NOT EXISTS {table} (run_id integer NOT NULL, digest bytea NOT NULL, {columns})
PARTITION BY LIST (run_id);

-- name: make-table-part
-- The CHECK lets Postgres attach the part later without reading it.
CREATE TABLE {part} (LIKE {table} INCLUDING ALL, CHECK (run_id = {run_id}));

-- name: column-compression
-- How the columns of the part $1 are to be compressed by `[store] compression` $2, as ALTER TABLE has it. NULL: as Postgres
-- does it by itself. `auto` keeps what somebody has set for a column of the table, and is lz4 where the server has that.
SELECT string_agg(format('ALTER COLUMN %I SET %s', attname, CASE $2 WHEN 'none' THEN 'STORAGE EXTERNAL'
                         WHEN 'pglz' THEN 'COMPRESSION pglz' ELSE 'COMPRESSION lz4' END), ', ')
FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND attstorage = 'x' AND ($2 <> 'auto' OR (attcompression = '' AND EXISTS (
    SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals))));

-- name: compress-part
ALTER TABLE {part} {columns};

-- name: is-there
-- Whether there is a table or view of this name. to_regclass alone could still miss one that another session has made:
-- a session learns of that when it locks a table, as it does for pg_class.
SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1));

-- name: view-timeout
-- To the end of the transaction: readers that come wait behind a view that waits for a reader.
SET LOCAL lock_timeout = '1s';

-- name: make-schema
CREATE SCHEMA IF NOT EXISTS {schema};

-- name: make-view
CREATE OR REPLACE VIEW {view} AS {branches};

-- name: differing-views
-- Of the tables $1, in SQL $2, those whose view $3 has other columns, or was dropped.
SELECT name FROM unnest($1::text[], $2::text[], $3::text[]) AS one(name, whole, view)
WHERE ARRAY(SELECT (attname, atttypid, atttypmod)::text FROM pg_attribute
            WHERE attrelid = to_regclass(whole) AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
   <> ARRAY(SELECT (attname, atttypid, atttypmod)::text FROM pg_attribute
            WHERE attrelid = to_regclass(view) AND attnum > 0 AND NOT attisdropped ORDER BY attnum);

-- name: view-branch
-- The pointer is read while the query runs, and then no other partition is.
SELECT * FROM {table} WHERE run_id = (SELECT current_run FROM corpora WHERE corpus = {corpus})

-- name: corpora-with-table
-- Corpora of schema $1, of all schemas for '', with $2 only those that have this table. As SQL has their names. Those of
-- earlier versions that readers do not see are left out, but for $3: each branch makes planning longer.
SELECT quote_literal(corpus) AS literal FROM corpora
WHERE ($2::text IS NULL AND $1 = '' OR schema = $1) AND ($2 IS NULL OR $2 = ANY(tables))
  AND (current_run IS NOT NULL OR corpus = $3
       OR NOT EXISTS (SELECT FROM runs WHERE runs.corpus = corpora.corpus AND published_at IS NOT NULL))
ORDER BY corpus;

-- name: find-corpus
-- `is_left_out`: no view has a branch of it.
SELECT schema, tables, current_run, current_run IS NULL AND EXISTS (
    SELECT FROM runs WHERE runs.corpus = corpora.corpus AND published_at IS NOT NULL) AS is_left_out
FROM corpora WHERE corpus = $1;

-- name: is-schema-of-runs
-- Whether the quoted schema $1 has `runs`, and with them the tables of the corpora that have no schema of their own.
SELECT relnamespace = to_regnamespace($1) FROM pg_class WHERE oid = to_regclass('runs');

-- name: add-corpus
INSERT INTO corpora (corpus, schema, tables) VALUES ($1, $2, $3)
ON CONFLICT (corpus) DO UPDATE SET tables = corpora.tables || excluded.tables;

-- name: current-run
SELECT current_run FROM corpora WHERE corpus = $1;

-- name: point-corpus
UPDATE corpora SET current_run = $2 WHERE corpus = $1;

-- name: mark-published
-- No row when the run is not complete, or not there.
UPDATE runs SET published_at = now(), shortfall = '' WHERE run_id = $1 AND state = 'complete' RETURNING run_id;

-- name: mark-shortfall
UPDATE runs SET shortfall = $2 WHERE run_id = $1 AND state = 'complete' AND shortfall IS NULL;

-- name: columns-of
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_attribute a
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: changed-parts
-- The parts whose columns differ from those of the table that they will be part of. And NULL when run $3 was cancelled, and
-- its pages are counted: who comes that late stores nothing.
SELECT part FROM unnest($1::text[], $2::text[]) AS pair(whole, part)
WHERE ARRAY(SELECT (attname, atttypid, atttypmod)::text FROM pg_attribute
            WHERE attrelid = to_regclass(whole) AND attnum > 0 AND NOT attisdropped ORDER BY attname)
   <> ARRAY(SELECT (attname, atttypid, atttypmod)::text FROM pg_attribute
            WHERE attrelid = to_regclass(part) AND attnum > 0 AND NOT attisdropped ORDER BY attname)
UNION ALL SELECT NULL FROM runs WHERE run_id = $3 AND state = 'cancelled' AND finished_at IS NOT NULL;

-- name: is-partitioned
SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = to_regclass($1));

-- name: make-example
-- A table with the columns of the job, to compare them, as Postgres writes them, with those of a table that exists.
CREATE TEMP TABLE example (run_id integer NOT NULL, digest bytea NOT NULL, {columns});

-- name: drop-example
DROP TABLE pg_temp.example;

-- name: count-outcomes
SELECT outcome, count(*) AS keys FROM {part} GROUP BY outcome;

-- name: count-reasons
-- Keys by outcome. Those that were refused or failed also by reason, the $2 usual ones of each outcome, and NULL for the
-- others, and by whether they were refused with one of the statuses $1. A reason is without the history of its attempts.
-- Reasons that differ only in what differs from key to key are one, without that: URLs, what is quoted, hosts, addresses,
-- and numbers that mean no kind of fault.
WITH told AS (
    SELECT outcome, coalesce(outcome = 'refused' AND status = ANY($1::integer[]), false) AS denied,
           CASE WHEN outcome IN ('refused', 'failed')
                THEN left(regexp_replace(coalesce(reason, ''), ' after \d+ attempts: .*$', ''), 1000) END AS reason
    FROM {part}
), reasons AS (
    SELECT outcome, denied, CASE WHEN min(reason) = max(reason) THEN min(reason) ELSE kind END AS reason,
           count(*) AS keys
    FROM told, left(regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(reason,
                   'https?://[^\s,)]+', '…', 'g'),
                   $q$'[^']*'|"[^"]*"$q$, '…', 'g'),
                   '^(dns|address): \S+', '\1: …'),
                   '[0-9a-f]*:[0-9a-f]*(:[0-9a-f]*)+', '…', 'g'),
                   '(?<!status |redirect |os error |U\+|\w)\d+', 'N', 'g'), 101) AS kind
    GROUP BY outcome, denied, kind
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY outcome ORDER BY keys DESC, reason) AS rank FROM reasons
)
SELECT outcome, denied,
       CASE WHEN rank > $2 THEN NULL WHEN length(reason) > 100 THEN left(reason, 99) || '…' ELSE reason END AS reason,
       sum(keys)::bigint AS keys
FROM ranked GROUP BY 1, 2, 3 ORDER BY keys DESC, reason;

-- name: reasons-timeout
-- To the end of the transaction: only a summary waits for these counts.
SELECT set_config('statement_timeout', '3s', true);

-- name: complete-run
UPDATE runs SET state = 'complete', counts = $2::text::jsonb, reasons = $3::text::jsonb, finished_at = now()
WHERE run_id = $1;

-- name: final-counts
-- No row unless the run is complete.
SELECT counts::text FROM runs WHERE run_id = $1 AND state = 'complete';

-- name: wanted-again
-- The pages of outcomes $1, only those of statuses $2 unless that is NULL, and those that were refused with a status of
-- $3. With $4 only those whose reason is LIKE this, in upper or lower case. With $5 only the page of this key.
((outcome = ANY($1::text[]) AND ($2::integer[] IS NULL OR status = ANY($2)))
 OR (outcome = 'refused' AND status = ANY($3::integer[])))
AND ($4::text IS NULL OR lower(reason) LIKE lower($4))
AND ($5::bytea IS NULL OR digest = $5);

-- name: has-base
-- Whether run $1 has a base, which then stays until this transaction ends.
SELECT base_run IS NOT NULL FROM runs WHERE run_id = $1 FOR NO KEY UPDATE;

-- name: stop-batches
-- To the end of the transaction batches of workers wait, and those under way are waited for. Else a page could be
-- committed after its records were looked for, and be deleted without them. Readers go on.
LOCK TABLE {part} IN SHARE ROW EXCLUSIVE MODE;

-- name: not-stale
-- The pages that are `wanted`, but for those whose rows nobody could bring back.
({wanted}) AND stale IS NOT TRUE;

-- name: count-stale
SELECT count(*) FROM {part} WHERE stale AND {wanted};

-- name: delete-records
-- Those of pages that are `wanted`, which is the query before this one. Other pages than these have none.
DELETE FROM {records} WHERE digest IN (
    SELECT digest FROM {part} WHERE (stale OR outcome IN ('stored', 'unchanged')) AND {wanted}
);

-- name: delete-pages
-- Returns how many, by outcome.
WITH deleted AS (DELETE FROM {part} WHERE {wanted} RETURNING outcome)
SELECT outcome, count(*) AS keys FROM deleted GROUP BY 1;

-- name: reopen-run
-- The new epoch is one that no Redis has, so whoever opens the run next rebuilds it. It is not called void: nothing is lost.
UPDATE runs SET state = 'running', counts = NULL, reasons = NULL, finished_at = NULL, shortfall = NULL,
                epoch = 'retry-' || md5(random()::text)
WHERE run_id = $1;

-- name: attach
ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES IN ({run_id});

-- name: digests
SELECT outcome, digest FROM {part};

-- name: lock-name
-- Two processes that make a run of the same name wait for each other.
SELECT pg_advisory_xact_lock(7310580, hashtext($1));

-- name: is-name-locked
-- Whether a process has the lock of the query before this one.
SELECT EXISTS (
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 7310580 AND objsubid = 2
    AND objid::bigint = hashtext($1)::bigint & 4294967295
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
);

-- name: lock-run
-- Two processes that finish the same run wait for each other, at most 10 s longer than the host of one is there.
SELECT pg_advisory_xact_lock(7310579, $1), set_config('tcp_user_timeout', '10s', true);

-- name: batch-timeouts
-- A batch fails when it waits longer for a lock. Postgres ends the session of a worker that is frozen within a batch, and
-- of one whose host does not acknowledge what Postgres sends: its locks would stop who takes over.
SELECT set_config('lock_timeout', '10s', true), set_config('idle_in_transaction_session_timeout', '30s', true),
  set_config('tcp_user_timeout', '10s', true);

-- name: make-body-fault
-- What Postgres says of a body that is no jsonb, in the words of the COPY, and null for one that is. Errors of class 22
-- (data exceptions) depend on the body alone. Others, like nesting beyond the stack, are left for the COPY to find.
CREATE OR REPLACE FUNCTION pg_temp.body_fault(body bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    detail text;
BEGIN
    PERFORM convert_from(body, 'UTF8')::jsonb;
    RETURN NULL;
EXCEPTION
    WHEN data_exception THEN
        GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
        RETURN concat_ws(': ', SQLERRM, nullif(detail, ''));
    WHEN others THEN
        RETURN NULL;
END
$$;

-- name: body-faults
-- The bodies that are no jsonb: their places in $1, from 1, and what Postgres says of them.
SELECT number, fault
FROM unnest($1::bytea[]) WITH ORDINALITY AS given(body, number), pg_temp.body_fault(body) AS fault
WHERE fault IS NOT NULL;

-- name: make-staging
-- Compressed as in the part: what is compressed goes there as it is.
CREATE TEMP TABLE IF NOT EXISTS {staging} (LIKE {part} INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION)
ON COMMIT DELETE ROWS;

-- name: merge-staging
-- A page that is stored already stays as it is. A key that is in the batch twice is inserted once.
-- Returns the digests that were inserted.
INSERT INTO {part} SELECT DISTINCT ON (digest) * FROM {staging} ON CONFLICT DO NOTHING RETURNING digest;

-- name: make-found
-- The keys that the pages of one run named. It is no part of any table.
CREATE TABLE {found} (
    digest bytea PRIMARY KEY, key text NOT NULL, context bytea NOT NULL, rule smallint NOT NULL, refusal text NOT NULL,
    depth integer NOT NULL, batch bigint NOT NULL
);

-- name: index-found
CREATE INDEX ON {found} (batch);

-- name: make-found-staging
CREATE TEMP TABLE IF NOT EXISTS {staging} (LIKE {found}) ON COMMIT DELETE ROWS;

-- name: merge-found
-- Sorted, so that two writers lock the same rows in the same order. Returns the digests that were inserted.
INSERT INTO {found} SELECT * FROM {staging} ORDER BY digest ON CONFLICT DO NOTHING RETURNING digest;

-- name: found-contexts
SELECT digest, context FROM {found} WHERE digest = ANY($1::bytea[]);

-- name: end-lists
UPDATE {part} SET reason = $2 WHERE digest = ANY($1::bytea[]);

-- name: stored-batches
-- What the pages $1, which were stored before, have named, with the digest of one key of each batch.
SELECT batch, depth, count(*) AS size, (array_agg(digest))[1] AS example FROM {found}
WHERE batch IN (SELECT batch FROM {part} WHERE digest = ANY($1::bytea[]) AND batch IS NOT NULL)
GROUP BY batch, depth;

-- name: read-found
SELECT digest, key, context, rule, refusal FROM {found} WHERE batch = $1 AND depth = $2;

-- name: unfetched-batches
SELECT batch, depth, count(*) AS size FROM {found} f
WHERE NOT EXISTS (SELECT FROM {part} p WHERE p.digest = f.digest)
GROUP BY batch, depth;

-- name: unfetched-digests
SELECT digest FROM {found} f WHERE NOT EXISTS (SELECT FROM {part} p WHERE p.digest = f.digest);

-- name: fetched-by-rule
SELECT rule, count(*) AS keys FROM {found} f
WHERE rule >= 0 AND EXISTS (SELECT FROM {part} p WHERE p.digest = f.digest)
GROUP BY rule;

-- name: broken-lists
-- The digests of the first pages of lists that are incomplete: a page of them brought nothing, or says so. And whether one
-- of their pages is stale.
SELECT DISTINCT coalesce(list, digest) AS list,
       EXISTS (SELECT FROM {part} s WHERE s.stale AND coalesce(s.list, s.digest) = coalesce(p.list, p.digest)) AS stale
FROM {part} p
WHERE (list IS NOT NULL AND outcome NOT IN ('stored', 'unchanged')) OR reason LIKE 'list incomplete:%';

-- name: count-broken-lists
SELECT count(DISTINCT coalesce(list, digest)) FROM {part}
WHERE (list IS NOT NULL AND outcome NOT IN ('stored', 'unchanged')) OR reason LIKE 'list incomplete:%';

-- name: count-found
-- Of each kind, NULL for that of the source: pages, pages of lists behind the first, followed keys, and what brought nothing.
SELECT coalesce(kind, '') AS kind, count(*) AS pages, count(list) AS list_pages,
       count(origin) FILTER (WHERE list IS NULL) AS followed,
       count(*) FILTER (WHERE outcome NOT IN ('stored', 'unchanged')) AS unread
FROM {part} GROUP BY 1;

-- name: of-lists
-- Pages of these lists, the first ones too.
(digest = ANY($1::bytea[]) OR list = ANY($1));

-- name: delete-list-records
DELETE FROM {records} r USING {part} p WHERE r.digest = p.digest AND (p.digest = ANY($1::bytea[]) OR p.list = ANY($1));

-- name: delete-list-found
-- The pages of these lists behind their first are found anew.
DELETE FROM {found} f USING {part} p WHERE f.digest = p.digest AND p.list = ANY($1::bytea[]);

-- name: keep-links-of-lists
-- What the pages of these lists behind their first named is kept, as if the first one named it: the list may be shorter now.
UPDATE {part} f SET origin = p.list FROM {part} p
WHERE f.origin = p.digest AND p.list = ANY($1::bytea[]) AND f.list IS DISTINCT FROM p.list;

-- name: delete-list-pages
WITH deleted AS (DELETE FROM {part} WHERE digest = ANY($1::bytea[]) OR list = ANY($1) RETURNING outcome)
SELECT outcome, count(*) AS keys FROM deleted GROUP BY 1;

-- name: add-found-digests
-- Those of the rules $1, which have found as many as they may, only where they were fetched.
WITH added AS (
    INSERT INTO audit_source_r0 SELECT digest FROM {found} f
    WHERE NOT rule = ANY($1::integer[]) OR EXISTS (SELECT FROM {part} p WHERE p.digest = f.digest)
    RETURNING 1
)
SELECT count(*) FROM added;

-- name: pages-without-origin
SELECT count(*) FROM {part} p
WHERE origin IS NOT NULL AND NOT EXISTS (SELECT FROM {part} o WHERE o.digest = p.origin AND (o.outcome <> 'failed' OR o.stale));

-- name: audit-settings
SELECT set_config('idle_in_transaction_session_timeout', '0', true), set_config('client_min_messages', 'warning', true);

-- name: make-audit-source
-- No table of a user's ends in _r0.
CREATE TEMP TABLE audit_source_r0 (digest bytea NOT NULL) ON COMMIT DROP;

-- name: audit-source
-- How many keys the source has, how many of them have no page, and how many pages have no key in the source.
SELECT count(s.digest) AS keys,
       count(*) FILTER (WHERE p.digest IS NULL) AS missing,
       count(*) FILTER (WHERE s.digest IS NULL) AS unknown
FROM (SELECT DISTINCT digest FROM audit_source_r0) s FULL JOIN (SELECT DISTINCT digest FROM {part}) p USING (digest);

-- name: missing-digests
SELECT DISTINCT digest FROM audit_source_r0 s
WHERE NOT EXISTS (SELECT FROM {part} p WHERE p.digest = s.digest) LIMIT $1;

-- name: unknown-keys
SELECT key FROM {part} p
WHERE NOT EXISTS (SELECT FROM audit_source_r0 s WHERE s.digest = p.digest) ORDER BY key LIMIT $1;

-- name: count-digests
SELECT count(DISTINCT digest) FROM {part};

-- name: is-attached
SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass($1) AND inhrelid = to_regclass($2));

-- name: make-audit-requests
CREATE TEMP TABLE audit_requests_r0 (key text NOT NULL) ON COMMIT DROP;

-- name: audit-requests
-- Keys in the log of an upstream: all, different ones, and examples that were requested more than once.
SELECT count(*) AS total, count(DISTINCT key) AS distinct,
       ARRAY(SELECT key FROM audit_requests_r0 GROUP BY key HAVING count(*) > 1 ORDER BY count(*) DESC, key LIMIT $1)
           AS examples
FROM audit_requests_r0;

-- name: exact-output
-- To the end of the transaction, whatever the server's settings are: what is written can be read in one way only.
SELECT set_config('DateStyle', 'ISO', true), set_config('bytea_output', 'hex', true),
       set_config('extra_float_digits', '1', true), set_config('IntervalStyle', 'postgres', true);

-- name: rows-as-json
-- Each row of a user's query as JSON in one line: only a json column can have a line break, and only between two words.
SELECT translate(row_to_json(named)::text, E'\n\r', '  ')
FROM (SELECT {columns} FROM (
{query}) AS given({names})) AS named;

-- name: idle-sessions
-- Sessions that have been idle in a transaction for more than $1 seconds, but for the cursor of a source, and but for those
-- that have only begun one: when the network goes away just then, they stay for a quarter of an hour, and stop nobody.
SELECT pid, floor(extract(epoch FROM clock_timestamp() - state_change))::bigint AS seconds
FROM pg_stat_activity a
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
  AND application_name <> 'shardcrawl source'
  AND state_change < clock_timestamp() - make_interval(secs => $1)
  AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype <> 'virtualxid')
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

-- name: newest-failures
-- Bounded: a part grows at its end, and only its last 1,000 blocks (8 MB) are read. $1 is its quoted name.
SELECT outcome, key, reason, fetched_at
FROM {part}
WHERE ctid >= (SELECT pg_catalog.format('(%s,0)', greatest(0, pg_catalog.pg_relation_size($1::pg_catalog.regclass)
    / pg_catalog.current_setting('block_size')::bigint - 1000))::pg_catalog.tid)
  AND outcome IN ('failed', 'refused')
ORDER BY fetched_at DESC
LIMIT $2;
