-- Purpose: the janitor looks for keys that vanished from the queue (a stranger trimmed a stream, say): no stream has
-- an entry, and still published keys are unresolved. Then the source is planned again from its beginning; the done
-- set drops what is finished.
-- KEYS[1] state (hash)   KEYS[2] leader (string)   KEYS[3] delayed (zset)   KEYS[4] ready (zset)
-- KEYS[5..] every stream of the run
-- ARGV[1] epoch   ARGV[2] planner   ARGV[3] cursor of the source's beginning
-- Returns how many keys are missing, 0 when none; "epoch" | "deposed"
local run = redis.call('HMGET', KEYS[1], 'epoch', 'published', 'resolved')
if run[1] ~= ARGV[1] then
  return 'epoch'
end
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 'deposed'
end
local delayed = redis.call('ZCARD', KEYS[3])
local missing = tonumber(run[2] or '0') - tonumber(run[3] or '0') - delayed
if missing == 0 then
  return 0
end
for stream = 5, #KEYS do
  if redis.call('XLEN', KEYS[stream]) > 0 then return 0 end
end
-- The streams go too: what is still pending of vanished entries must not be resolved on top of the new counts.
for key = 4, #KEYS do
  redis.call('DEL', KEYS[key])
end
if missing < 0 then
  -- Blocks that a worker held while the source was planned again were counted by it too: nothing is missing.
  redis.call('HSET', KEYS[1], 'published', run[3] + delayed)
  return 0
end
redis.call('HSET', KEYS[1], 'cursor', ARGV[3], 'exhausted', '0', 'published', delayed, 'deferred', delayed, 'resolved', 0,
  'skipped', 0)
return missing
