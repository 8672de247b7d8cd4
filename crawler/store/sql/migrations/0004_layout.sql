-- How a run is laid out in Redis, and the folder of its job. `spec` is the job as it is now. NULL, or of another epoch than
-- the run: the next opening makes the run in Redis anew.
ALTER TABLE runs ADD COLUMN IF NOT EXISTS layout jsonb;
