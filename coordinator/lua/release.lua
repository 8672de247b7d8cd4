-- Purpose: a draining worker leaves: its lease ends now, so that what it still has pending is claimed at once.
-- KEYS[1] workers (zset)   KEYS[2] receipts (hash)
-- ARGV[1] worker
-- Returns 1 when it was there, else 0
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
