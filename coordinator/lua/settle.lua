-- Purpose: the janitor asks whether every key of the run has its outcome; counts decide, never an empty stream.
-- KEYS[1] state (hash)
-- ARGV[1] epoch
-- Returns the run's state after the look: "running", "resolved" or "complete"; "epoch" when it is another run
local run = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'exhausted', 'published', 'resolved')
if run[1] ~= ARGV[1] then
  return 'epoch'
end
if run[2] == 'running' and run[3] == '1' and (run[4] or '0') == (run[5] or '0') then
  redis.call('HSET', KEYS[1], 'state', 'resolved')
  return 'resolved'
end
return run[2]
