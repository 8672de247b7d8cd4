-- Purpose: fill the done set from Postgres when Redis lost it.
-- KEYS[1] state (hash)   KEYS[2..] done buckets
-- ARGV[1] epoch   ARGV[2] outcome
-- ARGV[3] msgpack: [number of members in each bucket, all members as text, bucket after bucket]
-- At most 4,000 members, because Lua's stack ends near 8,000.
-- Returns {"ok", keys newly done} | {"epoch"}
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return {'epoch'}
end
local counts, members = unpack(cmsgpack.unpack(ARGV[3]))
local at = 1
local fresh = 0
for bucket, count in ipairs(counts) do
  fresh = fresh + redis.call('SADD', KEYS[1 + bucket], unpack(members, at, at + count - 1))
  at = at + count
end
if fresh > 0 then redis.call('HINCRBY', KEYS[1], ARGV[2], fresh) end
return {'ok', fresh}
