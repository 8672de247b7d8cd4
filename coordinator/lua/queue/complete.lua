-- Purpose: after the commit in Postgres: add digests to the done set, count outcomes, ack and delete finished blocks.
-- Keys that need another attempt go into the deferred set, and count as published once more.
-- A repeated call counts nothing twice: keys and blocks are counted only when SADD and XACK say that they are new;
-- requests, bytes, times and deferred keys only when the worker's receipt has another sequence number.
-- The first write can only free memory: then a full Redis lets the others pass (see renew), and completing work makes
-- room.
-- KEYS[1] state   KEYS[2] workers   KEYS[3] receipts
-- KEYS[4] due times of deferred keys (zset)   KEYS[5] deferred keys (hash)
-- KEYS[6] timings (hash)
-- KEYS[7..] a done bucket for each group of members, then a stream for each block
-- ARGV[1] epoch   ARGV[2] worker   ARGV[3] sequence number   ARGV[4] requests   ARGV[5] bytes received
-- ARGV[6] msgpack: [number of members in each group, all members as text, group after group, outcome of each group]
-- ARGV[7] msgpack: {field of the timings: how much it grows}
-- ARGV[8] number of blocks, then for each: entry id, keys in the block
-- then number of deferred keys, then for each: digest, ms until it is due, key and attempts
-- Returns {"ok", keys newly done} | {"lost"} the worker's lease has ended | {"epoch"} Redis has another run

local MOST_MEMBERS_A_CALL = 4000
local FIXED_KEYS = 6
local state_key = KEYS[1]
local workers_key = KEYS[2]
local receipts_key = KEYS[3]
local deferred_due_key = KEYS[4]
local deferred_keys_key = KEYS[5]
local timings_key = KEYS[6]
local epoch = ARGV[1]
local worker = ARGV[2]
local sequence = ARGV[3]
local requests = ARGV[4]
local received_bytes = ARGV[5]
local timings = ARGV[7]
local block_count = tonumber(ARGV[8])
-- include: clock
-- include: epoch
-- include: lease
-- include: stream

if is_other_run() then
  return {'epoch'}
end
if not is_alive(worker) then
  return {'lost'}
end
redis.call('HDEL', receipts_key, '')

local counts, members, outcomes = unpack(cmsgpack.unpack(ARGV[6]))
local newly_done = 0
local newly_done_of = {}
local last = 0
for group, count in ipairs(counts) do
  local bucket_key = KEYS[FIXED_KEYS + group]
  local outcome = outcomes[group]
  local begin = last + 1
  last = last + count
  -- Lua's stack ends near 8,000: a bucket is never so full, unless the corpus was far larger than its estimate.
  for first = begin, last, MOST_MEMBERS_A_CALL do
    local part_end = math.min(first + MOST_MEMBERS_A_CALL - 1, last)
    local added = redis.call('SADD', bucket_key, unpack(members, first, part_end))
    newly_done_of[outcome] = (newly_done_of[outcome] or 0) + added
    newly_done = newly_done + added
  end
end
for outcome, count in pairs(newly_done_of) do
  if count > 0 then redis.call('HINCRBY', state_key, outcome, count) end
end

local at = 9
local resolved = 0
for block = 1, block_count do
  local stream_key = KEYS[FIXED_KEYS + #counts + block]
  local entry_id = ARGV[at]
  if remove_entry(stream_key, entry_id) then
    resolved = resolved + tonumber(ARGV[at + 1])
  end
  at = at + 2
end
if resolved > 0 then redis.call('HINCRBY', state_key, 'resolved', resolved) end

if redis.call('HGET', receipts_key, worker) ~= sequence then
  redis.call('HSET', receipts_key, worker, sequence)
  redis.call('HINCRBY', state_key, 'moves', 1)
  redis.call('HINCRBY', state_key, 'requests', requests)
  redis.call('HINCRBY', state_key, 'received', received_bytes)
  if newly_done > 0 then redis.call('HSET', state_key, 'committed_ms', string.format('%.0f', now_ms)) end
  for field, more in pairs(cmsgpack.unpack(timings)) do
    -- They are only looked at: what another program has put there must not stop the run.
    redis.pcall('HINCRBY', timings_key, field, more)
  end
  local deferred = 0
  for first = at + 1, at + 3 * tonumber(ARGV[at]), 3 do
    local digest = ARGV[first]
    local due_ms = string.format('%.0f', now_ms + ARGV[first + 1])
    -- A block that was delivered twice can defer its keys twice: they wait once.
    if redis.call('ZADD', deferred_due_key, 'NX', due_ms, digest) == 1 then
      redis.call('HSET', deferred_keys_key, digest, ARGV[first + 2])
      deferred = deferred + 1
    end
  end
  if deferred > 0 then
    redis.call('HINCRBY', state_key, 'published', deferred)
    redis.call('HINCRBY', state_key, 'deferred', deferred)
  end
end
return {'ok', newly_done}
