-- name: export-settings
-- To the end of the transaction: rows come in the order in which they lie, and what is written can be read in one way only.
SELECT set_config('synchronize_seqscans', 'off', true), set_config('DateStyle', 'ISO', true),
       set_config('bytea_output', 'hex', true), set_config('extra_float_digits', '1', true),
       set_config('IntervalStyle', 'iso_8601', true), set_config('TimeZone', 'UTC', true),
       set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true),
       set_config('work_mem', '64MB', true);

-- name: try-lock-place
-- Whether no other command exports to this place: then this one does, to the end of the transaction.
SELECT pg_try_advisory_xact_lock(7310581, hashtext($1));

-- name: lock-place
-- Two commands that export to the same place wait for each other, to the end of the transaction.
SELECT pg_advisory_xact_lock(7310581, hashtext($1));

-- name: count-rows
SELECT count(*) FROM {part};

-- name: part-as-stored
-- `filenode` is another one when rows have moved: VACUUM FULL, CLUSTER, a restored dump. `rows` is an estimate, or less.
SELECT pg_relation_filenode(oid)::bigint AS filenode, pg_table_size(oid) AS bytes, reltuples::bigint AS rows
FROM pg_class WHERE oid = $1::text::regclass;

-- name: end-of-file
-- Where the next $2 rows behind $1 begin and end, and how many these are.
SELECT min(place)::text AS first, max(place)::text AS last, count(*) AS rows
FROM (SELECT ctid AS place FROM {part} WHERE ctid > $1::text::tid LIMIT $2) AS next;

-- name: rows-between
SELECT {columns} FROM {part} AS r {keys} WHERE r.ctid >= '{first}' AND r.ctid <= '{last}';

-- name: pages-between
-- Records are stored with their pages, so most of those from $1 to $2 have theirs about here, 2,000 blocks more or less.
SELECT greatest(0, min(block) - 2000) AS first, coalesce(max(block), 0) + 2000 AS last
FROM (SELECT (p.ctid::text::point)[0]::bigint AS block FROM {part} AS r
      JOIN {pages} AS p ON p.run_id = r.run_id AND p.digest = r.digest
      WHERE r.ctid IN ($1::text::tid, $2::text::tid)) AS ends;

-- name: keys-between
-- To look each key up in the index takes Postgres four times as long.
LEFT JOIN (SELECT digest, key FROM {pages} WHERE ctid >= '({first},0)' AND ctid <= '({last},0)') AS k USING (digest)

-- name: key-between
coalesce(k.key, {key})

-- name: rows-where
-- The condition is the user's, of the database that is the user's too, in a transaction that only reads.
SELECT {columns} FROM {part} AS r WHERE {condition};

-- name: row-as-json
-- Only a json column can have a line break, and only between two words.
SELECT translate(row_to_json(one)::text, E'\n\r', '  ') FROM ({rows}) AS one;

-- name: key-of-record
-- A record that was kept from an earlier run has one byte more in its digest than its key.
(SELECT p.key FROM {pages} AS p WHERE p.run_id = {run_id} AND p.digest = substring(r.digest FOR 16))
