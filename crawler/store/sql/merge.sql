-- Records of a run that give way to others, and those of the run before that stay in a run of a table that merges.
-- A record that was kept from an earlier run has one byte more in its digest than a key: no page of this run has it.

-- name: merge-settings
-- To the end of the transaction. What is set for a user's queries would end the run here again and again.
SELECT set_config('work_mem', '64MB', true), set_config('statement_timeout', '0', true);

-- name: drop-replaced
-- Of records with the same unique columns the one stays whose page was fetched last. A NULL is never the same. What was
-- kept from an earlier run, or has failed now, is older than any page. Pages of which another page's record has taken the
-- place lose their content's digest. Returns how many gave way.
WITH ranked AS (
    SELECT r.ctid AS place, r.digest, row_number() OVER newest AS rank, first_value(r.digest) OVER newest AS winner
    FROM {part} r LEFT JOIN {pages} p ON p.digest = r.digest
    WHERE {no_null}
    WINDOW newest AS (
        PARTITION BY {columns}
        ORDER BY CASE WHEN p.stale THEN NULL ELSE p.fetched_at END DESC NULLS LAST, length(r.digest), r.digest DESC, r.ctid DESC
    )
), replaced AS MATERIALIZED (
    SELECT place, digest, winner FROM ranked WHERE rank > 1
), incomplete AS (
    UPDATE {pages} SET content_digest = '' WHERE digest IN (SELECT digest FROM replaced WHERE digest <> winner)
), deleted AS (
    DELETE FROM {part} WHERE ctid IN (SELECT place FROM replaced) RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: drop-kept
-- Records that were kept from an earlier run, of keys that have content in this run now. Returns how many gave way.
WITH deleted AS (
    DELETE FROM {part} r
    WHERE length(r.digest) > 16 AND EXISTS (SELECT FROM {pages} p WHERE p.digest = substring(r.digest FOR 16) AND {decided})
    RETURNING 1
)
SELECT count(*) FROM deleted;

-- name: loosen-records
-- Records of the run before that stale and unchanged pages have, which are `wanted` again, in a run that was published: it is not
-- given once more what stays of that run. They are of no page until the run is complete, and have the byte 1 behind their digest.
WITH wanted AS (
    SELECT digest FROM {pages} WHERE (stale OR outcome = 'unchanged') AND {wanted}
), before AS (
    DELETE FROM {part} WHERE digest IN (SELECT digest || '\x01'::bytea FROM wanted)
)
UPDATE {part} SET digest = digest || '\x01'::bytea WHERE digest IN (SELECT digest FROM wanted);

-- name: drop-loose-records
-- The page has them again.
DELETE FROM {part} r WHERE substring(r.digest FROM 17) = '\x01'::bytea AND EXISTS (
    SELECT FROM {pages} p
    WHERE p.digest = substring(r.digest FOR 16) AND p.outcome NOT IN ('stored', 'gone') AND {decided});

-- name: keep-loose-records
UPDATE {part} SET digest = substring(digest FOR 16) || '\x00'::bytea WHERE substring(digest FROM 17) = '\x01'::bytea;

-- name: keep-records
-- The digest of a record that is kept is that of its page in the run where it was made, and one byte.
INSERT INTO {part} (run_id, digest, {columns})
SELECT {run_id}, substring(o.digest FOR 16) || '\x00'::bytea, {columns} FROM {before} o WHERE {stays};

-- name: stays-by-columns
-- `o` is a record of the run before. One with a NULL stays, unless its page is in this run with the same content, and so
-- has it already. One that was kept there is of no page.
NOT EXISTS (SELECT FROM {part} n WHERE {equal})
AND ({no_null} OR length(o.digest) > 16 OR NOT EXISTS (
    SELECT FROM {pages} p
    WHERE p.digest = substring(o.digest FOR 16) AND p.outcome NOT IN ('stored', 'gone') AND {decided}));

-- name: stays-by-key
NOT EXISTS (SELECT FROM {pages} p WHERE p.digest = substring(o.digest FOR 16) AND {decided});

-- name: decided
-- Whether a page says what records its key has: one that failed does not, unless it has those of the run before. Nor does
-- one of which the upstream or the parser said that nothing is new, where nothing was carried over.
(p.outcome IN ('stored', 'gone') OR p.stale
 OR (p.outcome = 'unchanged' AND coalesce(p.body_digest, nullif(p.content_digest, '')) IS NOT NULL));

-- name: lock-corpus
-- The run that readers see, and nobody changes that before the transaction ends.
SELECT current_run FROM corpora WHERE corpus = $1 FOR UPDATE;

-- name: was-published
SELECT published_at IS NOT NULL FROM runs WHERE run_id = $1;

-- name: lock-view
-- Readers lock the view before its tables, so who changes both must, too. LOCK TABLE would lock `corpora` with it, and
-- with that every view. There is no such option on a view of ours.
ALTER VIEW IF EXISTS {view} RESET (security_barrier);

-- name: loose-parts
-- The runs whose part is no partition. $1 is the quoted name of the part of run 0.
SELECT run_id FROM runs, replace($1, '_r0"', '_r' || run_id || '"') AS part
WHERE to_regclass(part) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(part))
ORDER BY run_id;

-- name: widen-table
-- Partitions get the columns too. Without a default no row is rewritten.
ALTER TABLE {table} {columns};
