-- The usual reasons of a complete run's keys that were refused or failed. NULL: nobody has counted them.
ALTER TABLE runs ADD COLUMN IF NOT EXISTS reasons jsonb;
