-- Where a page was found, in runs that follow what pages name: its kind, how many links led to it, its number in its list,
-- the digests of the page that named it and of the list's first page, and the number of the commit that stored it.

-- In the order of readers, who lock the view first.
LOCK TABLE pages_current IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN
        SELECT 'pages'::regclass
        UNION ALL
        SELECT to_regclass('pages_r' || run_id) FROM runs
        WHERE to_regclass('pages_r' || run_id) IS NOT NULL
          AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('pages_r' || run_id))
    LOOP
        EXECUTE format(
            'ALTER TABLE %s ADD COLUMN IF NOT EXISTS kind text, ADD COLUMN IF NOT EXISTS depth integer, '
            'ADD COLUMN IF NOT EXISTS page_no integer, ADD COLUMN IF NOT EXISTS origin bytea, '
            'ADD COLUMN IF NOT EXISTS list bytea, ADD COLUMN IF NOT EXISTS batch bigint', part
        );
    END LOOP;
END
$$;

-- A view has the columns that its table had when it was made.
CREATE OR REPLACE VIEW pages_current AS
    SELECT * FROM pages
    WHERE run_id = (SELECT run_id FROM runs WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT 1);
