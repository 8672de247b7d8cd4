-- Purpose: give a worker the shard it should drain next.
-- Order: a shard that a dead worker held; the unheld shard with most blocks; else the fullest shard of another.
-- KEYS[1] workers (zset)   KEYS[2] claims (hash "shard worker")   KEYS[3] ready (zset: shard -> unclaimed blocks)
-- KEYS[4] state
-- ARGV[1] worker   ARGV[2] epoch
-- Returns {"shard", shard} | {"none"} no shard has work | {"lost"} | {"epoch"}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = redis.call('HMGET', KEYS[4], 'epoch', 'state')
if run[1] ~= ARGV[2] then
  return {'epoch'}
end
local alive = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')) do
  alive[id] = true
end
if not alive[ARGV[1]] then
  return {run[2] == 'complete' and 'none' or 'lost'}
end
local function hold(shard)
  -- A write that can only free memory comes first, so that a full Redis lets the second one pass (see renew).
  redis.call('HDEL', KEYS[2], '')
  redis.call('HSET', KEYS[2], shard .. ' ' .. ARGV[1], 1)
  return {'shard', tonumber(shard)}
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
return {'none'}
