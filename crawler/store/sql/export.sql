-- name: export-settings
-- To the end of the transaction: rows come in the order in which they lie, and what is written can be read in one way only.
SELECT set_config('synchronize_seqscans', 'off', true), set_config('DateStyle', 'ISO', true),
       set_config('bytea_output', 'hex', true), set_config('extra_float_digits', '1', true),
       set_config('IntervalStyle', 'iso_8601', true), set_config('TimeZone', 'UTC', true),
       set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true);

-- name: count-rows
SELECT count(*) FROM {part};

-- name: end-of-file
-- Where the next $2 rows behind $1 end, and how many these are.
SELECT max(place)::text AS place, count(*) AS rows
FROM (SELECT ctid AS place FROM {part} WHERE ctid > $1::text::tid LIMIT $2) AS next;

-- name: rows-between
-- The key of a record is its page's.
SELECT {columns} FROM {part} AS r WHERE r.ctid > '{after}' AND r.ctid <= '{last}';

-- name: rows-where
-- The condition is the user's, of the database that is the user's too, in a transaction that only reads.
SELECT {columns} FROM {part} AS r WHERE {condition};

-- name: row-as-json
-- Only a json column can have a line break, and only between two words.
SELECT translate(row_to_json(one)::text, E'\n\r', '  ') FROM ({rows}) AS one;

-- name: key-of-record
(SELECT p.key FROM {pages} AS p WHERE p.run_id = {run_id} AND p.digest = r.digest)
