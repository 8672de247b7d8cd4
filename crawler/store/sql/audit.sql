-- What the audit compares: records with pages, and a refresh with its base.

-- name: orphan-records
-- Records whose key has no page with content, but those that were kept.
WITH orphans AS MATERIALIZED (
    SELECT r.digest FROM {part} r
    WHERE NOT EXISTS (SELECT FROM {pages} p
                      WHERE p.digest = r.digest AND (p.outcome IN ('stored', 'unchanged') OR p.stale IS TRUE))
      AND NOT ({kept})
)
SELECT (SELECT count(*) FROM orphans) AS records,
       ARRAY(SELECT DISTINCT encode(digest, 'hex') FROM orphans ORDER BY 1 LIMIT $1) AS examples;

-- name: nothing-kept
false;

-- name: kept-of-an-earlier-run
-- A record that was kept from an earlier run has one byte more in its digest than a key. Which run that was, and whether
-- it was pruned since, nobody knows.
length(r.digest) > 16;

-- name: doubled-records
-- Records beyond one with the same unique columns, of which no NULL is like another.
WITH doubled AS MATERIALIZED (
    SELECT count(*) - 1 AS more, ROW({columns})::text AS record FROM {part} r
    WHERE {no_null} GROUP BY {columns} HAVING count(*) > 1
)
SELECT (SELECT coalesce(sum(more), 0)::bigint FROM doubled) AS keys,
       ARRAY(SELECT record FROM doubled ORDER BY 1 LIMIT $1) AS examples;

-- name: stored-without-record
-- Stored keys of which no table has a record, with $2 also unchanged and stale ones: `has_no_record` is the next query
-- for each table, joined by AND. A page whose records gave way to newer ones of other pages is none.
WITH empty AS MATERIALIZED (
    SELECT key FROM {pages} p
    WHERE (outcome = 'stored' OR ($2 AND (outcome = 'unchanged' OR stale IS TRUE)))
      AND content_digest IS DISTINCT FROM ''::bytea AND {has_no_record}
)
SELECT (SELECT count(*) FROM empty) AS keys, ARRAY(SELECT key FROM empty ORDER BY 1 LIMIT $1) AS examples;

-- name: has-no-record
NOT EXISTS (SELECT FROM {part} r WHERE r.digest = p.digest);

-- name: stale-not-failed
WITH others AS MATERIALIZED (SELECT key FROM {pages} WHERE stale IS TRUE AND outcome <> 'failed')
SELECT (SELECT count(*) FROM others) AS keys, ARRAY(SELECT key FROM others ORDER BY 1 LIMIT $1) AS examples;

-- name: pages-unlike-base
-- Unchanged and stale pages that the base does not have, or has with another content. Of a page whose records gave way
-- to newer ones, the content is not compared, and no body that the base does not keep. Nothing was carried to a page of
-- which nothing is new, and that has no content.
WITH unlike AS MATERIALIZED (
    SELECT p.key FROM {pages} p LEFT JOIN {base} b ON b.digest = p.digest
    WHERE (p.outcome = 'unchanged' OR p.stale IS TRUE)
      AND coalesce(p.body_digest, nullif(p.content_digest, ''::bytea)) IS NOT NULL
      AND (b.digest IS NULL OR NOT (b.outcome IN ('stored', 'unchanged') OR b.stale IS TRUE)
           OR (p.content_digest IS DISTINCT FROM ''::bytea AND b.content_digest IS DISTINCT FROM ''::bytea
               AND coalesce(p.content_digest, p.body_digest) IS DISTINCT FROM coalesce(b.content_digest, b.body_digest))
           OR (p.body_digest = b.body_digest AND (b.body IS NOT NULL OR b.content IS NOT NULL)
               AND (p.body IS DISTINCT FROM b.body OR p.content IS DISTINCT FROM b.content)))
)
SELECT (SELECT count(*) FROM unlike) AS keys, ARRAY(SELECT key FROM unlike ORDER BY 1 LIMIT $1) AS examples;

-- name: records-unlike-base
-- Unchanged and stale pages with the content of the base, but with other records in one table. With $2 the job leaves
-- parts of a response out of its content: then only pages of one response are compared.
WITH carried AS (
    SELECT p.digest, p.key FROM {pages} p JOIN {base} b ON b.digest = p.digest
    WHERE (p.outcome = 'unchanged' OR p.stale IS TRUE)
      AND p.content_digest IS DISTINCT FROM ''::bytea
      AND coalesce(p.content_digest, p.body_digest) IS NOT DISTINCT FROM coalesce(b.content_digest, b.body_digest)
      AND (p.body_digest = b.body_digest OR NOT $2)
), unlike AS MATERIALIZED (
    SELECT carried.key FROM carried JOIN ({changes}) AS t ON t.digest = carried.digest WHERE t.change <> 'unchanged'
)
SELECT (SELECT count(*) FROM unlike) AS keys, ARRAY(SELECT key FROM unlike ORDER BY 1 LIMIT $1) AS examples;
