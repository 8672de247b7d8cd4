-- One row for each run. `spec` is the job, `state` is 'running' or 'complete', `counts` is how many keys ended with
-- each outcome, when the run is complete. `epoch` is a random word that Redis must have too. From `published_at` on
-- readers of the views see the run.
CREATE TABLE IF NOT EXISTS runs (
    run_id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL UNIQUE,
    spec         jsonb NOT NULL,
    epoch        text NOT NULL,
    state        text NOT NULL DEFAULT 'running',
    counts       jsonb,
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    published_at timestamptz
);

-- The fetch log: one row for each key and run. A run loads into a table of its own, pages_rN, which becomes a partition
-- when the run is published.
CREATE TABLE IF NOT EXISTS pages (
    run_id        integer NOT NULL,
    digest        bytea NOT NULL,
    key           text NOT NULL,
    url           text,
    outcome       text NOT NULL,
    reason        text,
    status        smallint,
    attempts      smallint NOT NULL,
    fetched_at    timestamptz NOT NULL,
    etag          text,
    last_modified text,
    body_digest   bytea,
    body          jsonb,
    PRIMARY KEY (run_id, digest)
) PARTITION BY LIST (run_id);

-- The pages of the run that was published last.
CREATE OR REPLACE VIEW pages_current AS
    SELECT * FROM pages
    WHERE run_id = (SELECT run_id FROM runs WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT 1);
