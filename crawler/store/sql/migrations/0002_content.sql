-- What is neither JSON nor text, and how text was decoded. A run that is not published has its pages in a table that is
-- no partition of `pages` yet: it gets the columns too, else it could never become one.

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
            'ALTER TABLE %s ADD COLUMN IF NOT EXISTS content bytea, ADD COLUMN IF NOT EXISTS content_type text, '
            'ADD COLUMN IF NOT EXISTS encoding text', part
        );
    END LOOP;
END
$$;

-- A view has the columns that its table had when it was made.
CREATE OR REPLACE VIEW pages_current AS
    SELECT * FROM pages
    WHERE run_id = (SELECT run_id FROM runs WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT 1);
