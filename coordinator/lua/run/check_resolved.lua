-- Purpose: call the run resolved when every key has its outcome; counts decide, never an empty stream.
-- KEYS[1] state (hash)
-- ARGV[1] epoch
-- Returns the run's state after this call: "running", "resolved" or "complete"; "epoch" when Redis has another run

local state_key = KEYS[1]
local epoch = ARGV[1]

local current_epoch, state, exhausted, published, resolved =
  unpack(redis.call('HMGET', state_key, 'epoch', 'state', 'exhausted', 'published', 'resolved'))
if current_epoch ~= epoch then
  return 'epoch'
end
if state == 'running' and exhausted == '1' and (published or '0') == (resolved or '0') then
  redis.call('HSET', state_key, 'state', 'resolved')
  return 'resolved'
end
return state
