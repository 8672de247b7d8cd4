-- Purpose: what changed at any upstream since the last look: pauses, breakers, live limits. Changes nothing.
-- KEYS[1] changes (zset: upstream -> number of its last change)   KEYS[2] upstreams (hash: upstream -> msgpack, see note)
-- KEYS[3] limits (hash: "rate UPSTREAM" -> msgpack {auto, {{count, seconds}, …}}; "concurrency UPSTREAM" -> number)
-- ARGV[1] number of the last change that is known
-- Returns {number of the last change, then of each upstream that changed: its name, µs until its pause ends (negative: so
-- long ago), µs that the rate rises after it, breaker "" | "open" | "probing", µs until its next probe, rate or "", concurrency or ""}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local top = tonumber(redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or '0')
local known = tonumber(ARGV[1])
if known > top then known = 0 end
local answer = {top}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. known, '+inf')) do
  local packed = redis.call('HGET', KEYS[2], name)
  local record = packed and cmsgpack.unpack(packed) or {}
  local breaker = record.breaker
  for _, value in ipairs({
    name,
    math.floor((record.ends or 0) - now),
    record.ramp or 0,
    breaker and (breaker.probing and 'probing' or 'open') or '',
    breaker and math.ceil(breaker.at - now) or 0,
    redis.call('HGET', KEYS[3], 'rate ' .. name) or '',
    redis.call('HGET', KEYS[3], 'concurrency ' .. name) or '',
  }) do
    answer[#answer + 1] = value
  end
end
return answer
