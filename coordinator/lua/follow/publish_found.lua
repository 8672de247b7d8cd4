-- Purpose: after the commit in Postgres: publish the keys that its pages named, while there is room below the high-water
-- mark, or leave a pointer to them in the frontier. A batch of pages that were stored before leaves a pointer always.
-- It is called before `complete`, so that the pages are not resolved before the keys that they named are counted. A
-- repeated call changes nothing: the worker's receipt has its sequence number. The first write can only free memory: then
-- a full Redis lets the others pass (see renew), and the worker goes on to complete.
-- KEYS[1] state   KEYS[2] workers   KEYS[3] receipts   KEYS[4] ready   KEYS[5] frontier (zset: pointer -> depth)
-- KEYS[6..] a known bucket for each group of members, then a stream for each block
-- ARGV[1] epoch   ARGV[2] worker   ARGV[3] sequence number   ARGV[4] high-water mark, keys
-- ARGV[5] msgpack: [number of members in each bucket, all members as text, bucket after bucket]
-- ARGV[6] "1" when keys of one depth wait until all of the depth before are resolved
-- ARGV[7] number of pointers, then for each: pointer, depth, keys, number of blocks (0: never at once),
--   then for each block: shard, keys in it, payload
-- Returns {"ok"} | {"lost"} the worker's lease has ended | {"epoch"} Redis has another run

local MOST_MEMBERS_A_CALL = 4000
local FIXED_KEYS = 5
local state_key = KEYS[1]
local workers_key = KEYS[2]
local receipts_key = KEYS[3]
local ready_key = KEYS[4]
local frontier_key = KEYS[5]
local epoch = ARGV[1]
local worker = ARGV[2]
local sequence = ARGV[3]
local high_water = tonumber(ARGV[4])
local by_level = ARGV[6] == '1'
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
local receipt = worker .. ' found'
if redis.call('HGET', receipts_key, receipt) == sequence then
  return {'ok'}
end

redis.call('HDEL', receipts_key, '')

local counts, members = unpack(cmsgpack.unpack(ARGV[5]))
local last = 0
for bucket, count in ipairs(counts) do
  local begin = last + 1
  last = last + count
  for first = begin, last, MOST_MEMBERS_A_CALL do
    local part_end = math.min(first + MOST_MEMBERS_A_CALL - 1, last)
    redis.call('SADD', KEYS[FIXED_KEYS + bucket], unpack(members, first, part_end))
  end
end

local published, resolved, level = unpack(redis.call('HMGET', state_key, 'published', 'resolved', 'level'))
local queued = tonumber(published or '0') - tonumber(resolved or '0')
level = tonumber(level or '0')
local added, pending = 0, 0
local stream = FIXED_KEYS + #counts
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local pointer, depth, keys, block_count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  at = at + 4
  local at_once = block_count > 0 and queued + added + keys <= high_water and (not by_level or depth <= level)
  for _ = 1, block_count do
    stream = stream + 1
    if at_once then
      create_stream(KEYS[stream])
      add_block(KEYS[stream], ARGV[at + 2])
      redis.call('ZINCRBY', ready_key, 1, ARGV[at])
      added = added + tonumber(ARGV[at + 1])
    end
    at = at + 3
  end
  if not at_once and redis.call('ZADD', frontier_key, 'NX', depth, pointer) == 1 then
    pending = pending + keys
  end
end
redis.call('HSET', receipts_key, receipt, sequence)
redis.call('HINCRBY', state_key, 'moves', 1)
if added > 0 then redis.call('HINCRBY', state_key, 'published', added) end
if pending > 0 then redis.call('HINCRBY', state_key, 'pending', pending) end
return {'ok'}
