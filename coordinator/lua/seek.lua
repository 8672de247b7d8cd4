-- Purpose: give a worker the shard it should drain next.
-- Order: a shard that a dead worker held; the unheld shard with most blocks; else the fullest shard of another.
-- KEYS[1] workers (zset)   KEYS[2] claims (hash "shard worker")   KEYS[3] ready (zset: shard -> unclaimed blocks)
-- ARGV[1] worker
-- Returns the shard, or -1 when no shard has work
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local alive = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')) do
  alive[id] = true
end
local function hold(shard)
  redis.call('HSET', KEYS[2], shard .. ' ' .. ARGV[1], 1)
  return tonumber(shard)
end
local held = {}
for _, claim in ipairs(redis.call('HKEYS', KEYS[2])) do
  local shard, holder = string.match(claim, '^(%d+) (.+)$')
  if not alive[holder] then
    return hold(shard)
  end
  held[shard] = true
end
local ready = redis.call('ZREVRANGE', KEYS[3], 0, -1)
for _, shard in ipairs(ready) do
  if not held[shard] then
    return hold(shard)
  end
end
if ready[1] then
  return hold(ready[1])
end
return -1
