-- Queries of a refresh: what the base has, and what is carried over from it. See queries.sql for the places in {braces}.

-- name: base-pages
-- What the base has of the keys $1 that have content there. A page that failed has no validators. `content` is empty
-- where the content is not whole.
SELECT digest, coalesce(final_url, url) AS url, etag, last_modified, extract(epoch FROM fetched_at)::float8 AS fetched_at,
       coalesce(content_digest, body_digest) AS content, outcome = 'failed' AS failed
FROM {part}
WHERE run_id = {run_id} AND digest = ANY($1::bytea[]) AND (outcome IN ('stored', 'unchanged') OR stale)
  AND (content_digest IS NOT NULL OR body_digest IS NOT NULL);

-- name: hold-base
-- To the end of the transaction: `retry` and the end of the base wait, so that pages and records are of one state of it.
-- And a base that was never analyzed is not read whole: without statistics Postgres believes that it has few digests.
SELECT pg_advisory_xact_lock_shared(7310579, {base_run}), set_config('enable_seqscan', 'off', true);

-- name: carry-pages
-- The content must be the one that was compared. A key that failed keeps the content alone. What was not requested keeps
-- also when it was fetched. A body that came, and made the same records, has validators of its own. LIMIT makes it a
-- lookup for each key in the order of $1, so that two writers lock the same rows in the same order: without it a base that
-- was never analyzed is read whole. Returns the digests that were inserted.
INSERT INTO {part} (run_id, digest, key, url, outcome, reason, status, attempts, fetched_at, etag, last_modified,
                    final_url, body_digest, content_digest, encoding, content_type, content, body, stale,
                    kind, depth, page_no, origin, list, batch)
SELECT {run_id}, b.digest, b.key, b.url, CASE WHEN now.failed THEN 'failed' ELSE 'unchanged' END,
       now.reason, coalesce(now.status, CASE WHEN now.failed THEN NULL ELSE b.status END),
       now.attempts, coalesce(to_timestamp(now.fetched_at), b.fetched_at),
       CASE WHEN now.failed THEN NULL WHEN now.body_digest IS NULL THEN b.etag ELSE now.etag END,
       CASE WHEN now.failed THEN NULL WHEN now.body_digest IS NULL THEN b.last_modified ELSE now.last_modified END,
       CASE WHEN now.failed THEN NULL WHEN now.body_digest IS NULL THEN b.final_url ELSE now.final_url END,
       coalesce(now.body_digest, b.body_digest), b.content_digest, b.encoding, b.content_type, b.content, b.body,
       CASE WHEN now.failed THEN true END,
       b.kind, now.depth, now.page_no, now.origin, b.list, $10::bigint
FROM unnest($1::bytea[], $2::bytea[], $3::boolean[], $4::text[], $5::smallint[], $6::smallint[], $7::float8[],
            $8::integer[], $9::integer[], $11::bytea[], $12::bytea[], $13::text[], $14::text[], $15::text[])
     AS now(digest, content, failed, reason, status, attempts, fetched_at, depth, page_no, origin,
            body_digest, etag, last_modified, final_url)
CROSS JOIN LATERAL (SELECT * FROM {base} WHERE run_id = {base_run} AND digest = now.digest LIMIT 1) b
WHERE (b.outcome IN ('stored', 'unchanged') OR b.stale) AND coalesce(b.content_digest, b.body_digest) = now.content
ON CONFLICT DO NOTHING RETURNING digest;

-- name: carry-records
INSERT INTO {part} (run_id, digest{columns}) SELECT {run_id}, digest{columns} FROM {base} WHERE digest = ANY($1::bytea[]);

-- name: stored-digests
SELECT digest FROM {part} WHERE run_id = {run_id} AND digest = ANY($1::bytea[]);

-- name: found-by-pages
-- What these pages had found is among what the pages of their batches had.
SELECT digest, key, context, rule, refusal FROM {found}
WHERE batch IN (SELECT batch FROM {part} WHERE run_id = {run_id} AND digest = ANY($1::bytea[]) AND batch IS NOT NULL);

-- name: has-digest-index
SELECT EXISTS (
    SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = to_regclass($1) AND a.attname = 'digest' AND i.indisvalid
);

-- name: index-digests
CREATE INDEX ON {part} (digest);
