-- What people look at in a browser: runs, keys that brought nothing, one key. None of these reads a whole run.

-- name: look-timeout
-- To the end of the transaction: who looks on must not keep Postgres busy.
SELECT set_config('statement_timeout', $1, true);

-- name: listed-runs
-- The $1 newest runs, those that are not complete first.
SELECT r.run_id, r.name, r.corpus, CASE WHEN r.state = 'running' AND r.paused THEN 'paused' ELSE r.state END AS state,
       r.epoch, r.counts::text AS counts, r.created_at, r.finished_at, r.published_at, r.shortfall, (r.layout ->> 'total')::bigint AS total, c.current_run IS NOT DISTINCT FROM r.run_id AS current
FROM runs r LEFT JOIN corpora c USING (corpus)
ORDER BY r.state <> 'running', r.run_id DESC LIMIT $1;

-- name: count-runs
SELECT count(*) FROM runs;

-- name: ended-keys
-- Keys of outcome $1 behind digest $2, in its order: at most $5 of the next $3 of them, those that are LIKE $4.
SELECT digest, key, reason, status, attempts, fetched_at, stale
FROM (SELECT * FROM {part} WHERE outcome = $1 AND digest > $2 ORDER BY digest LIMIT $3) AS looked
WHERE $4::text IS NULL OR lower(reason) LIKE lower($4) OR lower(key) LIKE lower($4)
ORDER BY digest LIMIT $5;

-- name: last-looked
-- The last of the keys that `ended-keys` looks at, and how many these are.
SELECT digest, row_number() OVER (ORDER BY digest) AS looked
FROM (SELECT digest FROM {part} WHERE outcome = $1 AND digest > $2 ORDER BY digest LIMIT $3) AS looked
ORDER BY digest DESC LIMIT 1;

-- name: sample-of-ended
-- In the place of a part for `count-reasons`: digests are random, so the first pages by digest are a fair sample.
((SELECT * FROM {part} WHERE outcome = 'failed' ORDER BY digest LIMIT {most})
 UNION ALL (SELECT * FROM {part} WHERE outcome = 'refused' ORDER BY digest LIMIT {most})) AS sampled;

-- name: page-of-digest
SELECT key, url, final_url, outcome, reason, status, attempts, fetched_at, etag, last_modified, stale, kind, depth, page_no,
       content_type, encoding, octet_length(content) AS content_bytes, pg_column_size(body) AS body_bytes,
       left(jsonb_pretty(body), $2) AS body
FROM {part} WHERE digest = $1;

-- name: outcome-of-digest
SELECT outcome, status, reason, fetched_at, stale FROM {part} WHERE digest = $1;

-- name: records-of-digest
SELECT left(jsonb_pretty(to_jsonb(r) - 'run_id' - 'digest'), $2) AS record FROM {part} r WHERE digest = $1 LIMIT $3;

-- name: changed-keys-of-kind
SELECT key FROM ({changed}) AS changed WHERE change = $1 LIMIT $2;

-- name: run-before
-- The newest complete run of the corpus before this one.
SELECT name FROM runs WHERE corpus = $1 AND run_id < $2 AND state = 'complete' ORDER BY run_id DESC LIMIT 1;
