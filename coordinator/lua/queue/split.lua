-- Purpose: replace a block that several workers died of by smaller ones, until the key that kills is alone.
-- KEYS[1] state (hash)   KEYS[2] workers (zset)   KEYS[3] stream of the shard   KEYS[4] ready (zset)
-- ARGV[1] epoch   ARGV[2] worker   ARGV[3] shard   ARGV[4] entry id   ARGV[5] keys in it
-- ARGV[6..] for each smaller block: keys in it, payload
-- Returns {"ok"} also when this same call was carried out before | {"lost"} the worker's lease has ended |
--   {"epoch"} Redis has another run

local state_key = KEYS[1]
local workers_key = KEYS[2]
local stream_key = KEYS[3]
local ready_key = KEYS[4]
local epoch = ARGV[1]
local worker = ARGV[2]
local shard = ARGV[3]
local entry_id = ARGV[4]
local keys_before = tonumber(ARGV[5])
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
if remove_entry(stream_key, entry_id) then
  local keys_after = 0
  for at = 6, #ARGV, 2 do
    keys_after = keys_after + tonumber(ARGV[at])
    add_block(stream_key, ARGV[at + 1])
    redis.call('ZINCRBY', ready_key, 1, shard)
  end
  redis.call('HINCRBY', state_key, 'published', keys_after)
  redis.call('HINCRBY', state_key, 'skipped', keys_before - keys_after)
  redis.call('HINCRBY', state_key, 'published', -keys_before)
  redis.call('HINCRBY', state_key, 'moves', 1)
end
return {'ok'}
