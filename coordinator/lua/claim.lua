-- Purpose: deliver one block of a shard to a worker: first what dead workers left pending, then the next new one.
-- A call that is repeated with its number, because the answer got lost, is answered with the same block.
-- KEYS[1] stream of the shard   KEYS[2] workers (zset)   KEYS[3] claims (hash)   KEYS[4] ready (zset)   KEYS[5] state
-- ARGV[1] worker   ARGV[2] shard   ARGV[3] epoch   ARGV[4] number of the call
-- Returns {"block", entry id, deliveries, payload; empty when it has none} | {"empty"} nothing left here, the claim is given back when the
--         worker has nothing pending | {"lost"} | {"epoch"}
local GROUP = 'workers'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HGET', KEYS[5], 'epoch') ~= ARGV[3] then
  return {'epoch'}
end
local function living(id)
  local ends = redis.call('ZSCORE', KEYS[2], id)
  return ends and tonumber(ends) > now
end
if not living(ARGV[1]) then
  return {'lost'}
end
local function payload(fields)
  for index = 1, #fields, 2 do
    if fields[index] == 'b' then return fields[index + 1] end
  end
  return ''
end
local mine = ARGV[2] .. ' ' .. ARGV[1]
local function deliver(entry, deliveries)
  redis.call('HSET', KEYS[3], mine, ARGV[4] .. ' ' .. entry[1])
  return {'block', entry[1], deliveries, payload(entry[2])}
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  local number, id = string.match(redis.call('HGET', KEYS[3], mine) or '', '^(%S+) (%S+)$')
  if number == ARGV[4] then
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    local pending = redis.call('XPENDING', KEYS[1], GROUP, id, id, 1, ARGV[1])[1]
    if entry and pending then return {'block', id, pending[4], payload(entry[2])} end
  end
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], GROUP)) do
    local named = {}
    for index = 1, #consumer, 2 do named[consumer[index]] = consumer[index + 1] end
    if named['name'] ~= ARGV[1] and not living(named['name']) then
      local pending = redis.call('XPENDING', KEYS[1], GROUP, '-', '+', 1, named['name'])[1]
      -- A delivery counts when its worker died of it, or might have: not when the worker left by itself.
      local left = tonumber(redis.call('ZSCORE', KEYS[2], named['name']) or '0') < 0
      while pending do
        local deliveries = left and pending[4] or pending[4] + 1
        local entry = redis.call('XCLAIM', KEYS[1], GROUP, ARGV[1], 0, pending[1], 'RETRYCOUNT', deliveries)[1]
        if entry and entry[2] then
          return deliver(entry, deliveries)
        end
        -- A pending entry whose body is gone (trimmed by a stranger) is acked: 6.2 would offer it for ever.
        redis.call('XACK', KEYS[1], GROUP, pending[1])
        pending = redis.call('XPENDING', KEYS[1], GROUP, '-', '+', 1, named['name'])[1]
      end
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], GROUP, named['name'])
      redis.call('HDEL', KEYS[3], ARGV[2] .. ' ' .. named['name'])
    end
  end
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, ARGV[1], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
  if read then
    local entry = read[1][2][1]
    if redis.call('ZINCRBY', KEYS[4], -1, ARGV[2]) + 0 <= 0 then
      redis.call('ZREM', KEYS[4], ARGV[2])
    end
    return deliver(entry, 1)
  end
end
redis.call('ZREM', KEYS[4], ARGV[2])
-- A dead worker may have held the shard without ever reading from it: then no consumer of its name was seen above.
for _, claim in ipairs(redis.call('HKEYS', KEYS[3])) do
  local shard, holder = string.match(claim, '^(%d+) (.+)$')
  if shard == ARGV[2] and not living(holder) then
    redis.call('HDEL', KEYS[3], claim)
  end
end
if redis.call('EXISTS', KEYS[1]) == 0
    or #redis.call('XPENDING', KEYS[1], GROUP, '-', '+', 1, ARGV[1]) == 0 then
  redis.call('HDEL', KEYS[3], mine)
end
return {'empty'}
