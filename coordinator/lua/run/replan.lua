-- Purpose: find keys that vanished from the queue (another program trimmed a stream, say): no stream has an entry, but
-- published keys are neither resolved nor deferred. Then the cursor goes back to the source's beginning, so that the
-- planner publishes again all keys that are not done. A repeated call finds nothing missing, and returns 0.
-- KEYS[1] state (hash)   KEYS[2] leader (string)   KEYS[3] due times of deferred keys (zset)   KEYS[4] frontier (zset)
-- KEYS[5] ready (zset)   KEYS[6..] every stream of the run
-- ARGV[1] epoch   ARGV[2] coordinator   ARGV[3] cursor of the source's beginning
-- ARGV[4] "1" when the run follows what pages name: the source does not have these keys, so the run loses its epoch, and
--   is rebuilt from Postgres. There keys are missing too when some are pending, but the frontier has no pointer
-- Returns how many keys are missing, 0 when none; "epoch" Redis has another run, or this one lost its epoch now |
--   "deposed" another coordinator leads

local state_key = KEYS[1]
local leader_key = KEYS[2]
local deferred_due_key = KEYS[3]
local frontier_key = KEYS[4]
local READY_AT = 5
local FIRST_STREAM_AT = 6
local epoch = ARGV[1]
local coordinator = ARGV[2]
local first_cursor = ARGV[3]
local follows = ARGV[4] == '1'
-- include: leader

local current_epoch, published, resolved, pending =
  unpack(redis.call('HMGET', state_key, 'epoch', 'published', 'resolved', 'pending'))
if current_epoch ~= epoch then
  return 'epoch'
end
if not is_leader() then
  return 'deposed'
end
local deferred = redis.call('ZCARD', deferred_due_key)
local missing = tonumber(published or '0') - tonumber(resolved or '0') - deferred
local frontier_vanished = follows and (pending or '0') ~= '0' and redis.call('ZCARD', frontier_key) == 0
if missing == 0 and not frontier_vanished then
  return 0
end
for stream = FIRST_STREAM_AT, #KEYS do
  if redis.call('XLEN', KEYS[stream]) > 0 then return 0 end
end

-- The streams are deleted too: if a worker completed a vanished entry that is still pending, it would be counted as
-- resolved, although the new counts do not have it as published.
for key = READY_AT, #KEYS do
  redis.call('DEL', KEYS[key])
end
if missing < 0 and not frontier_vanished then
  -- More was resolved than published: after an earlier replan, a worker completed blocks that it still held. Nothing is
  -- missing.
  redis.call('HSET', state_key, 'published', resolved + deferred)
  return 0
end
if follows then
  redis.call('HSET', state_key, 'epoch', 'void')
  return 'epoch'
end
redis.call('HSET', state_key, 'cursor', first_cursor, 'exhausted', '0',
  'published', deferred, 'deferred', deferred, 'resolved', 0, 'skipped', 0)
return missing
