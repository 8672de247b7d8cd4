-- Purpose: nobody asks this upstream before a time, and then few at first; a pause is only ever raised.
-- KEYS[1] upstreams (hash: upstream -> msgpack record, see note)   KEYS[2] changes (zset: upstream -> number of its last change)
-- ARGV[1] upstream   ARGV[2] pause, µs from now
-- Returns {µs from now until the pause ends, µs that the rate rises after it}
local LONGEST_RAMP, WEEK = 5000000, 604800
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local packed = redis.call('HGET', KEYS[1], ARGV[1])
local record = packed and cmsgpack.unpack(packed) or {}
local ends = now + tonumber(ARGV[2])
if ends > math.max(record.ends or 0, now) then
  record.ends = ends
  record.ramp = math.min(LONGEST_RAMP, ends - now)
  redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(record))
  local top = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  redis.call('ZADD', KEYS[2], (top[2] or 0) + 1, ARGV[1])
  redis.call('EXPIRE', KEYS[1], WEEK)
  redis.call('EXPIRE', KEYS[2], WEEK)
end
return {math.ceil((record.ends or now) - now), record.ramp or 0}
