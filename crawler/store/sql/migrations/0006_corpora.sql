-- Runs are versions of a corpus, and one pointer a corpus says which of them readers see.

-- In the order of readers, who lock the views first.
LOCK TABLE pages_current IN ACCESS EXCLUSIVE MODE;

-- `schema` is the schema that has the corpus' own tables, '' for the one of `runs`; `tables` are the names of these.
CREATE TABLE IF NOT EXISTS corpora (
    corpus      text PRIMARY KEY,
    schema      text NOT NULL DEFAULT '',
    tables      text[] NOT NULL DEFAULT '{}',
    current_run integer REFERENCES runs
);

-- `base_run` is the run from which unchanged pages are carried over. `content_hash` says what made the content of the
-- run's pages: another one, other rows. NULL: it is not one thing, so nothing may be carried from the run. `shortfall`
-- says why a complete run was not published, '' when it was; NULL: nobody has decided yet.
ALTER TABLE runs ADD COLUMN IF NOT EXISTS corpus text, ADD COLUMN IF NOT EXISTS base_run integer REFERENCES runs,
                 ADD COLUMN IF NOT EXISTS content_hash text, ADD COLUMN IF NOT EXISTS shortfall text;

-- A run of an earlier version is a corpus of its own. What readers saw is what they see.
UPDATE runs SET corpus = name, shortfall = CASE WHEN published_at IS NOT NULL THEN '' END WHERE corpus IS NULL;
ALTER TABLE runs ALTER COLUMN corpus SET NOT NULL;
INSERT INTO corpora (corpus, tables, current_run)
    SELECT corpus,
           ARRAY(SELECT one ->> 'name' FROM jsonb_array_elements(
               CASE WHEN jsonb_typeof(spec -> 'tables') = 'array' THEN spec -> 'tables' ELSE '[]'::jsonb END) AS one),
           CASE WHEN run_id = (SELECT run_id FROM runs WHERE published_at IS NOT NULL
                               ORDER BY published_at DESC LIMIT 1) THEN run_id END
    FROM runs
ON CONFLICT DO NOTHING;

-- `content_digest` is the XXH3-128 of a key's records; NULL: its content is its body, of which `body_digest` is; empty:
-- some of its records gave way to newer ones of other pages, so that it cannot be carried. A `stale` page has failed, and
-- has the content of the run before. `final_url` is the URL that responded, where that is another one than `url`.
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
            'ALTER TABLE %s ADD COLUMN IF NOT EXISTS content_digest bytea, ADD COLUMN IF NOT EXISTS stale boolean, '
            'ADD COLUMN IF NOT EXISTS final_url text', part
        );
    END LOOP;
END
$$;

-- A branch for each corpus, so that Postgres reads no other run's partition. Old runs that readers did not see have none:
-- with a hundred of them a second would go by before a query begins.
DO $$
DECLARE
    name text;
    branches text;
BEGIN
    FOR name IN
        SELECT 'pages' UNION
        SELECT unnest(tables) FROM corpora
    LOOP
        CONTINUE WHEN to_regclass(quote_ident(name)) IS NULL;
        SELECT string_agg(format(
                   'SELECT * FROM %I WHERE run_id = (SELECT current_run FROM corpora WHERE corpus = %L)', name, corpus
               ), ' UNION ALL ' ORDER BY corpus)
        INTO branches FROM corpora
        WHERE (name = 'pages' OR name = ANY(tables))
          AND (current_run IS NOT NULL
               OR NOT EXISTS (SELECT FROM runs WHERE runs.corpus = corpora.corpus AND published_at IS NOT NULL));
        EXECUTE format(
            'CREATE OR REPLACE VIEW %I AS %s', name || '_current', coalesce(branches, format('SELECT * FROM %I WHERE false', name))
        );
    END LOOP;
END
$$;
