-- Purpose: list the deferred keys whose time has come.
-- KEYS[1] due times of deferred keys (zset: digest -> ms)   KEYS[2] deferred keys (hash: digest -> key and attempts)
-- ARGV[1] most keys
-- Returns digest, key and attempts (msgpack), digest, …; the second is empty for a digest whose hash field is gone

local deferred_due_key = KEYS[1]
local deferred_keys_key = KEYS[2]
local most_keys = ARGV[1]
local LONGEST_WAIT_MS = 172800000
-- include: clock

local result = {}
local function list(least, most)
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', deferred_due_key, least, most, 'LIMIT', 0, most_keys)) do
    result[#result + 1] = digest
    result[#result + 1] = redis.call('HGET', deferred_keys_key, digest) or ''
  end
end
list('-inf', string.format('%.0f', now_ms))
-- No key is deferred for so long: another program has written this time, and the key need not wait for it.
if not result[1] then list(string.format('%.0f', now_ms + LONGEST_WAIT_MS), '+inf') end
return result
