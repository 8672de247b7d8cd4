-- Purpose: fill the done set from Postgres when Redis lost it.
-- KEYS[1] state (hash)   KEYS[2..] done buckets
-- ARGV[1] epoch   ARGV[2] outcome, then for each bucket: number of members, the members
-- Returns {"ok", keys newly done} | {"epoch"}
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return {'epoch'}
end
local at = 3
local fresh = 0
for bucket = 2, #KEYS do
  local count = tonumber(ARGV[at])
  fresh = fresh + redis.call('SADD', KEYS[bucket], unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
if fresh > 0 then redis.call('HINCRBY', KEYS[1], ARGV[2], fresh) end
return {'ok', fresh}
