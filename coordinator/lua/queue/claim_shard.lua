-- Purpose: give a worker the shard that it should drain next.
-- Order: a shard that a dead worker held; the shard with most unclaimed blocks that no worker holds; else the one with
-- most of all, which another worker holds too.
-- KEYS[1] workers (zset)   KEYS[2] claims (hash "shard worker")   KEYS[3] ready (zset: shard -> unclaimed blocks)
-- KEYS[4] state
-- ARGV[1] worker   ARGV[2] epoch
-- Returns {"shard", shard} | {"none"} no shard has work | {"lost"} the worker's lease has ended |
--   {"epoch"} Redis has another run

local workers_key = KEYS[1]
local claims_key = KEYS[2]
local ready_key = KEYS[3]
local state_key = KEYS[4]
local worker = ARGV[1]
local epoch = ARGV[2]
local MOST_DIGITS = 6
-- include: clock
-- include: living_workers

-- Whether this is the number of a shard; another program may have written anything.
local function is_shard(shard)
  return shard and #shard <= MOST_DIGITS and string.match(shard, '^%d+$') ~= nil
end

local function hold(shard)
  -- A write that can only free memory comes first, so that a full Redis lets the second one pass (see renew).
  redis.call('HDEL', claims_key, '')
  redis.call('HSET', claims_key, shard .. ' ' .. worker, 1)
  return {'shard', tonumber(shard)}
end

local current_epoch, state = unpack(redis.call('HMGET', state_key, 'epoch', 'state'))
if current_epoch ~= epoch then
  return {'epoch'}
end
local alive = {}
for _, id in ipairs(living_workers()) do
  alive[id] = true
end
if not alive[worker] then
  return {state == 'complete' and 'none' or 'lost'}
end

local held = {}
for _, claim in ipairs(redis.call('HKEYS', claims_key)) do
  local shard, holder = string.match(claim, '^(%d+) (.+)$')
  if is_shard(shard) then
    if not alive[holder] then
      return hold(shard)
    end
    held[shard] = true
  end
end
local fullest_first = {}
for _, shard in ipairs(redis.call('ZREVRANGE', ready_key, 0, -1)) do
  if not is_shard(shard) then
    redis.call('ZREM', ready_key, shard)
  elseif not held[shard] then
    return hold(shard)
  else
    fullest_first[#fullest_first + 1] = shard
  end
end
if fullest_first[1] then
  return hold(fullest_first[1])
end
return {'none'}
