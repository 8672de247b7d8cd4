-- Purpose: list the deferred keys whose time has come.
-- KEYS[1] due times of deferred keys (zset: digest -> ms)   KEYS[2] deferred keys (hash: digest -> key and attempts)
-- ARGV[1] most keys
-- Returns digest, key and attempts (msgpack), digest, …; the second is empty for a digest whose hash field is gone

local deferred_due_key = KEYS[1]
local deferred_keys_key = KEYS[2]
local most_keys = ARGV[1]
-- include: clock

local until_now = string.format('%.0f', now_ms)
local result = {}
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', deferred_due_key, '-inf', until_now, 'LIMIT', 0, most_keys)) do
  result[#result + 1] = digest
  result[#result + 1] = redis.call('HGET', deferred_keys_key, digest) or ''
end
return result
