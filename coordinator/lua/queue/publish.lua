-- Purpose: append the blocks of one chunk of the corpus and move the source's cursor, all or nothing.
-- Epoch, leader and cursor are compared first: a call that is repeated, or comes from a coordinator that no longer
-- leads, changes nothing.
-- KEYS[1] state (hash)   KEYS[2] ready (zset)   KEYS[3] leader (string)   KEYS[4..] streams
-- ARGV[1] epoch   ARGV[2] coordinator   ARGV[3] cursor before   ARGV[4] cursor after
-- ARGV[5] "1" when the source is exhausted   ARGV[6] keys of the chunk that were done already
-- ARGV[7..] for each stream: shard, number of blocks, then for each block: keys in it, payload
-- Returns {"ok"} also when this same call was carried out before | {"moved"} the cursor is at neither place |
--   {"epoch"} Redis has another run | {"deposed"} another coordinator leads, or none

local state_key = KEYS[1]
local ready_key = KEYS[2]
local leader_key = KEYS[3]
local epoch = ARGV[1]
local coordinator = ARGV[2]
local cursor_before = ARGV[3]
local cursor_after = ARGV[4]
local exhausted = ARGV[5]
local skipped = ARGV[6]
-- include: leader
-- include: stream
-- include: append_blocks

local current_epoch, cursor, was_exhausted = unpack(redis.call('HMGET', state_key, 'epoch', 'cursor', 'exhausted'))
if current_epoch ~= epoch then
  return {'epoch'}
end
if not is_leader() then
  return {'deposed'}
end
if cursor ~= cursor_before then
  return {cursor == cursor_after and 'ok' or 'moved'}
end
if was_exhausted == '1' then
  return {'ok'}
end

local published = append_blocks(KEYS, 4, ARGV, 7)
redis.call('HINCRBY', state_key, 'moves', 1)
redis.call('HINCRBY', state_key, 'published', published)
redis.call('HINCRBY', state_key, 'skipped', skipped)
redis.call('HSET', state_key, 'cursor', cursor_after, 'exhausted', exhausted)
return {'ok'}
