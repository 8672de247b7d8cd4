-- Purpose: after the commit in Postgres: digests into the done set, outcomes counted, finished blocks acked and deleted.
-- Keys that are to be tried again go into the delayed set, and count as published once more.
-- Counts follow what SADD and XACK say is new, so a repeated call counts nothing twice; requests, bytes and deferred
-- keys are guarded by the worker's receipt.
-- The first write can only free memory: a full Redis then lets the others pass (see renew), and finishing work is
-- what empties it.
-- KEYS[1] state   KEYS[2] workers   KEYS[3] receipts   KEYS[4] delayed (zset)   KEYS[5] deferred (hash)
-- KEYS[6..] a done bucket for each group of members, then a stream for each block
-- ARGV[1] epoch   ARGV[2] worker   ARGV[3] sequence number   ARGV[4] requests   ARGV[5] bytes received
-- ARGV[6] msgpack: [number of members in each group, all members as text, group after group, outcome of each group]
-- ARGV[7] number of blocks, then for each: entry id, keys in the block
-- then number of deferred keys, then for each: digest, ms until it is due, key and tries
-- Returns {"ok", keys newly done} | {"lost"} | {"epoch"}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return {'epoch'}
end
local ends = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not ends or tonumber(ends) <= now then
  return {'lost'}
end
redis.call('HDEL', KEYS[3], '')
local counts, members, outcomes = unpack(cmsgpack.unpack(ARGV[6]))
local new = {}
local fresh = 0
local last = 0
for group, count in ipairs(counts) do
  local bucket, outcome, begin = KEYS[5 + group], outcomes[group], last + 1
  last = last + count
  -- Lua's stack ends near 8,000: a bucket is never so full, unless the corpus was far larger than its estimate.
  for first = begin, last, 4000 do
    local added = redis.call('SADD', bucket, unpack(members, first, math.min(first + 3999, last)))
    new[outcome] = (new[outcome] or 0) + added
    fresh = fresh + added
  end
end
for outcome, count in pairs(new) do
  if count > 0 then redis.call('HINCRBY', KEYS[1], outcome, count) end
end
local at = 8
local resolved = 0
for block = 1, tonumber(ARGV[7]) do
  local stream, entry = KEYS[5 + #counts + block], ARGV[at]
  if redis.call('XACK', stream, 'workers', entry) == 1 then
    redis.call('XDEL', stream, entry)
    resolved = resolved + tonumber(ARGV[at + 1])
  end
  at = at + 2
end
if resolved > 0 then redis.call('HINCRBY', KEYS[1], 'resolved', resolved) end
if redis.call('HGET', KEYS[3], ARGV[2]) ~= ARGV[3] then
  redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
  redis.call('HINCRBY', KEYS[1], 'moves', 1)
  redis.call('HINCRBY', KEYS[1], 'requests', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'received', ARGV[5])
  local deferred = 0
  for first = at + 1, at + 3 * tonumber(ARGV[at]), 3 do
    -- A block that was delivered twice can defer its keys twice: they wait once.
    if redis.call('ZADD', KEYS[4], 'NX', string.format('%.0f', now + ARGV[first + 1]), ARGV[first]) == 1 then
      redis.call('HSET', KEYS[5], ARGV[first], ARGV[first + 2])
      deferred = deferred + 1
    end
  end
  if deferred > 0 then
    redis.call('HINCRBY', KEYS[1], 'published', deferred)
    redis.call('HINCRBY', KEYS[1], 'deferred', deferred)
  end
end
return {'ok', fresh}
