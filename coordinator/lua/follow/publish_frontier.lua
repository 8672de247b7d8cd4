-- Purpose: publish the keys to which one pointer of the frontier leads, all or nothing. A repeated call changes nothing.
-- KEYS[1] state   KEYS[2] leader (string)   KEYS[3] ready (zset)   KEYS[4] frontier (zset)   KEYS[5..] streams
-- ARGV[1] epoch   ARGV[2] coordinator   ARGV[3] pointer   ARGV[4] its keys   ARGV[5] its depth
-- ARGV[6] its keys that were done already
-- ARGV[7] number of rules, then for each: rule, how many keys of it are published, and how many are cut
-- then for each stream: shard, number of blocks, then for each block: keys in it, payload
-- Returns "ok" | "moved" the frontier does not have this pointer any more | "epoch" Redis has another run |
--   "resolved" every key has its outcome, so that the pointer is none of ours | "deposed" another coordinator leads, or none

local state_key = KEYS[1]
local leader_key = KEYS[2]
local ready_key = KEYS[3]
local frontier_key = KEYS[4]
local epoch = ARGV[1]
local coordinator = ARGV[2]
local pointer = ARGV[3]
local pointer_keys = ARGV[4]
local depth = tonumber(ARGV[5])
local skipped = ARGV[6]
-- include: epoch
-- include: leader
-- include: stream
-- include: append_blocks

if is_other_run() then
  return 'epoch'
end
if not is_leader() then
  return 'deposed'
end
if redis.call('HGET', state_key, 'state') ~= 'running' then
  return 'resolved'
end
if redis.call('ZREM', frontier_key, pointer) == 0 then
  return 'moved'
end

local at = 8
for _ = 1, tonumber(ARGV[7]) do
  redis.call('HINCRBY', state_key, 'followed:' .. ARGV[at], ARGV[at + 1])
  redis.call('HINCRBY', state_key, 'cut', ARGV[at + 2])
  at = at + 3
end
local published = append_blocks(KEYS, 5, ARGV, at)
redis.call('HINCRBY', state_key, 'moves', 1)
redis.call('HINCRBY', state_key, 'published', published)
redis.call('HINCRBY', state_key, 'skipped', skipped)
redis.call('HINCRBY', state_key, 'pending', -pointer_keys)
if depth > tonumber(redis.call('HGET', state_key, 'level') or '0') then
  redis.call('HSET', state_key, 'level', depth)
end
return 'ok'
