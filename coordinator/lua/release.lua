-- Purpose: a draining worker leaves: its lease ends now, so that what it still has pending is claimed at once, and as
-- it left by itself its blocks are not charged with a death.
-- KEYS[1] workers (zset: id -> end of lease, ms; negative: left by itself at that time)   KEYS[2] receipts (hash)
-- ARGV[1] worker
-- Returns 1 when it was there, else 0
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HDEL', KEYS[2], ARGV[1])
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
redis.call('ZADD', KEYS[1], -now, ARGV[1])
return 1
