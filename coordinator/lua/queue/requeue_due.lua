-- Purpose: put deferred keys that are due back into the queue, as new blocks. They were counted as published when they
-- were deferred, so that count stays. A repeated call changes nothing ("moved").
-- KEYS[1] state (hash)   KEYS[2] leader (string)   KEYS[3] ready (zset)
-- KEYS[4] due times of deferred keys (zset)   KEYS[5] deferred keys (hash)   KEYS[6..] streams
-- ARGV[1] epoch   ARGV[2] coordinator   ARGV[3] number of digests, then the digests
-- then for each stream: shard, number of blocks, their payloads
-- Returns "ok" | "moved" one of them is not in the set any more | "epoch" Redis has another run |
--   "deposed" another coordinator leads, or none; all but "ok" change nothing

local state_key = KEYS[1]
local leader_key = KEYS[2]
local ready_key = KEYS[3]
local deferred_due_key = KEYS[4]
local deferred_keys_key = KEYS[5]
local epoch = ARGV[1]
local coordinator = ARGV[2]
local FIRST_DIGEST_AT = 4
local last_digest_at = FIRST_DIGEST_AT - 1 + tonumber(ARGV[3])
-- include: epoch
-- include: leader
-- include: stream

if is_other_run() then
  return 'epoch'
end
if not is_leader() then
  return 'deposed'
end
for at = FIRST_DIGEST_AT, last_digest_at do
  if not redis.call('ZSCORE', deferred_due_key, ARGV[at]) then return 'moved' end
end

for at = FIRST_DIGEST_AT, last_digest_at do
  redis.call('ZREM', deferred_due_key, ARGV[at])
  redis.call('HDEL', deferred_keys_key, ARGV[at])
end
local at = last_digest_at + 1
for stream = 6, #KEYS do
  local stream_key = KEYS[stream]
  local shard = ARGV[at]
  local block_count = tonumber(ARGV[at + 1])
  create_stream(stream_key)
  for payload_at = at + 2, at + 1 + block_count do
    add_block(stream_key, ARGV[payload_at])
  end
  redis.call('ZINCRBY', ready_key, block_count, shard)
  at = at + 2 + block_count
end
redis.call('HINCRBY', state_key, 'moves', 1)
return 'ok'
