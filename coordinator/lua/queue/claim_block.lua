-- Purpose: deliver one block of a shard to a worker: first one that a dead worker left pending, then the next new one.
-- A call that is repeated with its number, because its result got lost, returns the same block.
-- KEYS[1] stream of the shard   KEYS[2] workers (zset)   KEYS[3] claims (hash)   KEYS[4] ready (zset)   KEYS[5] state
-- ARGV[1] worker   ARGV[2] shard   ARGV[3] epoch   ARGV[4] number of the call
-- Returns {"block", entry id, deliveries, payload; empty when it has none} |
--   {"empty"} no block is left here, and the worker's claim of the shard ends, unless it has blocks pending |
--   {"lost"} the worker's lease has ended | {"epoch"} Redis has another run

local stream_key = KEYS[1]
local workers_key = KEYS[2]
local claims_key = KEYS[3]
local ready_key = KEYS[4]
local state_key = KEYS[5]
local worker = ARGV[1]
local shard = ARGV[2]
local epoch = ARGV[3]
local call_number = ARGV[4]
local MOST_DIGITS = 38 -- of an entry id
-- include: clock
-- include: epoch
-- include: lease
-- include: stream

local own_claim = shard .. ' ' .. worker

local function payload_of(fields)
  for index = 1, #fields, 2 do
    if fields[index] == 'b' then return fields[index + 1] end
  end
  return ''
end

local function deliver(entry, deliveries)
  redis.call('HSET', claims_key, own_claim, call_number .. ' ' .. entry[1])
  return {'block', entry[1], deliveries, payload_of(entry[2])}
end

-- The block that the same call delivered before; nil when it did not.
local function delivered_before()
  local number, entry_id = string.match(redis.call('HGET', claims_key, own_claim) or '', '^(%d+) (%d+%-%d+)$')
  if number == call_number then
    if #entry_id > MOST_DIGITS then return nil end -- another program wrote it
    local entry = redis.call('XRANGE', stream_key, entry_id, entry_id)[1]
    local pending = redis.call('XPENDING', stream_key, GROUP, entry_id, entry_id, 1, worker)[1]
    if entry and pending then
      return {'block', entry_id, pending[4], payload_of(entry[2])}
    end
  end
end

local function first_pending(consumer)
  return redis.call('XPENDING', stream_key, GROUP, '-', '+', 1, consumer)[1]
end

-- The first block that a dead worker left pending; nil when it left none.
local function take_over(dead)
  local pending = first_pending(dead)
  -- The new delivery is counted unless the dead worker left by itself: else it may have died of this block.
  local left_by_itself = tonumber(redis.call('ZSCORE', workers_key, dead) or '0') < 0
  while pending do
    local deliveries = left_by_itself and pending[4] or pending[4] + 1
    local entry = redis.call('XCLAIM', stream_key, GROUP, worker, 0, pending[1], 'RETRYCOUNT', deliveries)[1]
    if entry and entry[2] then
      return deliver(entry, deliveries)
    end
    -- The body of this entry is gone (another program trimmed the stream). In Redis 6.2 it would stay pending forever.
    redis.call('XACK', stream_key, GROUP, pending[1])
    pending = first_pending(dead)
  end
  redis.call('XGROUP', 'DELCONSUMER', stream_key, GROUP, dead)
  redis.call('HDEL', claims_key, shard .. ' ' .. dead)
end

if is_other_run() then
  return {'epoch'}
end
if not is_alive(worker) then
  return {'lost'}
end

if redis.call('EXISTS', stream_key) == 1 then
  local block = delivered_before()
  if block then return block end
  for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', stream_key, GROUP)) do
    local consumer = {}
    for index = 1, #fields, 2 do consumer[fields[index]] = fields[index + 1] end
    if consumer.name ~= worker and not is_alive(consumer.name) then
      block = take_over(consumer.name)
      if block then return block end
    end
  end
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1, 'STREAMS', stream_key, '>')
  if read then
    local entry = read[1][2][1]
    if redis.call('ZINCRBY', ready_key, -1, shard) + 0 <= 0 then
      redis.call('ZREM', ready_key, shard)
    end
    return deliver(entry, 1)
  end
end

redis.call('ZREM', ready_key, shard)
-- A dead worker that held the shard without reading from it is not among the consumers above.
for _, claim in ipairs(redis.call('HKEYS', claims_key)) do
  local claimed, holder = string.match(claim, '^(%d+) (.+)$')
  if claimed == shard and not is_alive(holder) then
    redis.call('HDEL', claims_key, claim)
  end
end
if redis.call('EXISTS', stream_key) == 0 or not first_pending(worker) then
  redis.call('HDEL', claims_key, own_claim)
end
return {'empty'}
