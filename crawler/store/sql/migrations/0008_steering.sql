-- How a run is steered while it goes on: whether it is paused, and how many workers it may have (no bound: NULL). Redis has
-- the same, for the workers; a run that is rebuilt there gets it from here.
ALTER TABLE runs
    ADD COLUMN IF NOT EXISTS paused boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS max_workers integer;
