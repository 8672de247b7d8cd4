-- Purpose: an entry that is no block of ours is put aside, and the shard goes on.
-- KEYS[1] stream of the shard   KEYS[2] aside (list)
-- ARGV[1] entry id   ARGV[2] its payload, cut   ARGV[3] most entries that are kept
-- Returns 1 when this call did it, else 0
if redis.call('XACK', KEYS[1], 'workers', ARGV[1]) == 0 then
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[3]), -1)
return 1
