-- Purpose: nobody asks this upstream before a time; a pause is only ever raised.
-- KEYS[1] pauses (hash: upstream -> end of pause, µs)
-- ARGV[1] upstream   ARGV[2] pause, µs from now
-- Returns µs from now until the pause ends
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ends = math.max(tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0'), now + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', ends))
redis.call('EXPIRE', KEYS[1], 86400)
return math.ceil(ends - now)
