-- Purpose: a draining worker leaves: its lease ends now, so that what it still has pending is claimed at once. As it
-- left by itself, these deliveries do not count as deaths (see claim_block).
-- KEYS[1] workers (zset: id -> end of lease, ms; negative: left by itself at that time)   KEYS[2] receipts (hash)
-- ARGV[1] worker
-- Returns 1 when it was there, else 0

local workers_key = KEYS[1]
local receipts_key = KEYS[2]
local worker = ARGV[1]
-- include: clock

redis.call('HDEL', receipts_key, worker)
if not redis.call('ZSCORE', workers_key, worker) then
  return 0
end
redis.call('ZADD', workers_key, -now_ms, worker)
return 1
