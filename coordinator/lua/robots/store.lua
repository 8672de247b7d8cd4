-- Purpose: store what a worker found in the robots.txt of an origin, for the whole fleet.
-- KEYS[1] robots (hash of one origin)
-- ARGV[1] worker   ARGV[2] what it found   ARGV[3] how long that is valid, ms   ARGV[4] how long it is kept, ms
-- Returns 1, or 0 and changes nothing when this worker is not the one that fetches it (any more)

local robots_key = KEYS[1]
local worker = ARGV[1]
local found = ARGV[2]
local holds_ms = tonumber(ARGV[3])
local kept_ms = ARGV[4]

if redis.call('HGET', robots_key, 'asker') ~= worker then
  return 0
end
-- include: clock
redis.call('HSET', robots_key, 'found', found, 'holds', string.format('%.0f', now_ms + holds_ms))
redis.call('HDEL', robots_key, 'asker', 'until')
redis.call('PEXPIRE', robots_key, kept_ms)
return 1
