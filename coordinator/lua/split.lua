-- Purpose: a block that several workers died of becomes smaller ones, until the key that kills is alone.
-- KEYS[1] state (hash)   KEYS[2] workers (zset)   KEYS[3] stream of the shard   KEYS[4] ready (zset)
-- ARGV[1] epoch   ARGV[2] worker   ARGV[3] shard   ARGV[4] entry id   ARGV[5] keys in it
-- ARGV[6..] for each smaller block: keys in it, payload
-- Returns {"ok"} also when this very call was carried out before | {"lost"} | {"epoch"}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return {'epoch'}
end
local ends = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not ends or tonumber(ends) <= now then
  return {'lost'}
end
if redis.call('XACK', KEYS[3], 'workers', ARGV[4]) == 1 then
  redis.call('XDEL', KEYS[3], ARGV[4])
  local keys = 0
  for at = 6, #ARGV, 2 do
    keys = keys + tonumber(ARGV[at])
    redis.call('XADD', KEYS[3], '*', 'b', ARGV[at + 1])
    redis.call('ZINCRBY', KEYS[4], 1, ARGV[3])
  end
  redis.call('HINCRBY', KEYS[1], 'published', keys)
  redis.call('HINCRBY', KEYS[1], 'skipped', tonumber(ARGV[5]) - keys)
  redis.call('HINCRBY', KEYS[1], 'published', -tonumber(ARGV[5]))
  redis.call('HINCRBY', KEYS[1], 'moves', 1)
end
return {'ok'}
