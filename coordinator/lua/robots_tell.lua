-- Purpose: the worker that asked an origin for its robots.txt tells the fleet what it found.
-- KEYS[1] robots (hash of one origin)
-- ARGV[1] worker   ARGV[2] what it found   ARGV[3] how long that holds, ms   ARGV[4] how long it is kept, ms
-- Returns 1, or 0 when this worker is not, or no longer, the one that asks
if redis.call('HGET', KEYS[1], 'asker') ~= ARGV[1] then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'found', ARGV[2], 'holds', string.format('%.0f', now + ARGV[3]))
redis.call('HDEL', KEYS[1], 'asker', 'until')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
