-- What differs between two runs: by `changes`, which migration 0007 made, and by the records of one table.

-- name: comparison-memory
-- To the end of the transaction: a million keys are sorted in memory.
SELECT set_config('work_mem', '64MB', true);

-- name: count-changes
SELECT change, count(*) AS keys FROM changes($1::integer, $2::integer) GROUP BY change;

-- name: changed-keys
SELECT change, key FROM changes({old}, {new}) WHERE change NOT IN ('unchanged', 'absent');

-- name: count-records
SELECT count(*) FROM {part};

-- name: table-changes
-- What has become of the records of each key, whatever their order. The hash is of their text, of the columns of both.
-- A record that was kept from an earlier run has one byte more in its digest than its key.
SELECT coalesce(n.digest, o.digest) AS digest,
       CASE WHEN o.digest IS NULL THEN 'added' WHEN n.digest IS NULL THEN 'removed'
            WHEN n.records = o.records AND n.hash = o.hash THEN 'unchanged' ELSE 'changed' END AS change
FROM (SELECT substring(digest FOR 16) AS digest, count(*) AS records,
             sum(hashtextextended(ROW({columns})::text, 0::bigint)) AS hash
      FROM {old} WHERE {kept} OR length(digest) = 16 GROUP BY 1) o
FULL JOIN (SELECT substring(digest FOR 16) AS digest, count(*) AS records,
                  sum(hashtextextended(ROW({columns})::text, 0::bigint)) AS hash
           FROM {new} WHERE {kept} OR length(digest) = 16 GROUP BY 1) n ON n.digest = o.digest;

-- name: count-table-changes
SELECT change, count(*) AS keys FROM ({changes}) AS of_table GROUP BY change;

-- name: changed-keys-of-table
-- A key that has no page in the new run has its name from the old one.
SELECT t.change, coalesce(n.key, o.key) AS key
FROM ({changes}) AS t LEFT JOIN {new_pages} n ON n.digest = t.digest LEFT JOIN {old_pages} o ON o.digest = t.digest
WHERE t.change <> 'unchanged';
