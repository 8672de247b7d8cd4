-- Purpose: append the blocks of one chunk of the corpus and move the source's cursor, all or nothing.
-- The cursor is compared first: a call that is repeated, or a planner that no longer leads, changes nothing.
-- KEYS[1] state (hash)   KEYS[2] ready (zset)   KEYS[3] leader (string)   KEYS[4..] streams
-- ARGV[1] epoch   ARGV[2] planner   ARGV[3] cursor before   ARGV[4] cursor after   ARGV[5] "1" when the source is exhausted
-- ARGV[6] keys of the chunk that were done already
-- ARGV[7..] for each stream: shard, number of blocks, then for each block: keys in it, payload
-- Returns {"ok"} also when this very call was carried out before | {"moved"} | {"epoch"} | {"deposed"}
local state = redis.call('HMGET', KEYS[1], 'epoch', 'cursor', 'exhausted')
if state[1] ~= ARGV[1] then
  return {'epoch'}
end
if redis.call('GET', KEYS[3]) ~= ARGV[2] then
  return {'deposed'}
end
if state[2] ~= ARGV[3] then
  if state[2] == ARGV[4] then return {'ok'} end
  return {'moved'}
end
if state[3] == '1' then
  return {'ok'}
end
local keys = 0
local at = 7
for stream = 4, #KEYS do
  local shard, count = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  if redis.call('EXISTS', KEYS[stream]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[stream], 'workers', '0', 'MKSTREAM')
  end
  for _ = 1, count do
    keys = keys + tonumber(ARGV[at])
    redis.call('XADD', KEYS[stream], '*', 'b', ARGV[at + 1])
    at = at + 2
  end
  redis.call('ZINCRBY', KEYS[2], count, shard)
end
redis.call('HINCRBY', KEYS[1], 'moves', 1)
redis.call('HINCRBY', KEYS[1], 'published', keys)
redis.call('HINCRBY', KEYS[1], 'skipped', ARGV[6])
redis.call('HSET', KEYS[1], 'cursor', ARGV[4], 'exhausted', ARGV[5])
return {'ok'}
