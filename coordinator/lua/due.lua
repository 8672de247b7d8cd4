-- Purpose: which deferred keys are due, on Redis TIME?
-- KEYS[1] delayed (zset: digest -> due, ms)   KEYS[2] deferred (hash: digest -> key and its tries)
-- ARGV[1] most keys
-- Returns digest, packed, digest, …; packed is empty for a digest that lost its entry
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local digests = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
local answer = {}
for _, digest in ipairs(digests) do
  answer[#answer + 1] = digest
  answer[#answer + 1] = redis.call('HGET', KEYS[2], digest) or ''
end
return answer
