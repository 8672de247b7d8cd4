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
-- What has become of the records of each key, whatever their order: hashes of their text, of the columns of both runs,
-- add up to 0 when each has its like on the other side. They have 63 bits, so that there is a negative of each. A
-- record that was kept from an earlier run has one byte more in its digest than its key.
SELECT substring(digest FOR 16) AS digest,
       CASE WHEN min(side) > 0 THEN 'added' WHEN max(side) < 0 THEN 'removed'
            WHEN sum(side) = 0 AND sum(side * hash) = 0 THEN 'unchanged' ELSE 'changed' END AS change
FROM (SELECT digest, -1 AS side, hashtextextended(ROW({columns})::text, 0::bigint) >> 1 AS hash FROM {old}
      UNION ALL
      SELECT digest, 1, hashtextextended(ROW({columns})::text, 0::bigint) >> 1 FROM {new}) AS records
WHERE {kept} OR length(digest) = 16
GROUP BY 1;

-- name: count-table-changes
SELECT change, count(*) AS keys FROM ({changes}) AS of_table GROUP BY change;

-- name: changed-keys-of-table
-- A key that has no page in the new run has its name from the old one.
SELECT t.change, coalesce(n.key, o.key) AS key
FROM ({changes}) AS t LEFT JOIN {new_pages} n ON n.digest = t.digest LEFT JOIN {old_pages} o ON o.digest = t.digest
WHERE t.change <> 'unchanged';
