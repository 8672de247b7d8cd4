-- Purpose: deferred keys that are due go back to the queue as new blocks. They count as published since they were
-- deferred, so the count stays.
-- KEYS[1] state (hash)   KEYS[2] leader (string)   KEYS[3] ready (zset)   KEYS[4] delayed (zset)   KEYS[5] deferred (hash)
-- KEYS[6..] streams
-- ARGV[1] epoch   ARGV[2] planner   ARGV[3] number of digests, then the digests
-- then for each stream: shard, number of blocks, their payloads
-- Returns "ok" | "moved" nothing was done: one of them is not in the set any more | "epoch" | "deposed"
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return 'epoch'
end
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 'deposed'
end
local last = 3 + tonumber(ARGV[3])
for at = 4, last do
  if not redis.call('ZSCORE', KEYS[4], ARGV[at]) then return 'moved' end
end
for at = 4, last do
  redis.call('ZREM', KEYS[4], ARGV[at])
  redis.call('HDEL', KEYS[5], ARGV[at])
end
local at = last + 1
for stream = 6, #KEYS do
  local shard, count = ARGV[at], tonumber(ARGV[at + 1])
  if redis.call('EXISTS', KEYS[stream]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[stream], 'workers', '0', 'MKSTREAM')
  end
  for payload = at + 2, at + 1 + count do
    redis.call('XADD', KEYS[stream], '*', 'b', ARGV[payload])
  end
  redis.call('ZINCRBY', KEYS[3], count, shard)
  at = at + 2 + count
end
redis.call('HINCRBY', KEYS[1], 'moves', 1)
return 'ok'
