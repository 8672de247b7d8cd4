-- Purpose: call the run resolved when every key has its outcome; counts decide, never an empty stream.
-- KEYS[1] state (hash)
-- ARGV[1] epoch
-- Returns the run's state after this call: "running", "resolved", "complete" or "cancelled"; "epoch" when Redis has another run

local state_key = KEYS[1]
local epoch = ARGV[1]
-- include: epoch
-- include: resolve

if is_other_run() then
  return 'epoch'
end
return resolve()
