-- Purpose: end the lease of a worker that leaves, so that others can claim at once what it still has pending. The worker
-- did not die, so these deliveries are not counted (see claim_block).
-- KEYS[1] workers (zset: id -> end of lease, ms; negative: left by itself at that time)   KEYS[2] receipts (hash)
-- KEYS[3] the worker's figures (string)
-- ARGV[1] worker
-- Returns 1, or 0 when the run does not have this worker

local workers_key = KEYS[1]
local receipts_key = KEYS[2]
local figures_key = KEYS[3]
local worker = ARGV[1]
-- include: clock

redis.call('HDEL', receipts_key, worker, worker .. ' found')
redis.call('DEL', figures_key)
if not redis.call('ZSCORE', workers_key, worker) then
  return 0
end
redis.call('ZADD', workers_key, -now_ms, worker)
return 1
