-- Purpose: let one worker of the fleet fetch the robots.txt of an origin, while the others wait for what it finds.
-- A repeated call of the same worker returns "ask" again, with the whole time.
-- KEYS[1] robots (hash of one origin)
-- ARGV[1] worker   ARGV[2] how long fetching may take, ms
-- Returns {"known", ms for which it is valid, what was found} |
--   {"ask", ms in which this worker must fetch it, what was found before or ""} |
--   {"wait", ms until the worker that fetches it must be done, ""}

local robots_key = KEYS[1]
local worker = ARGV[1]
local lease_ms = tonumber(ARGV[2])
local LONGEST_VALID_MS = 90000000
-- include: clock

local found, holds_until_ms, asker, asker_until_ms =
  unpack(redis.call('HMGET', robots_key, 'found', 'holds', 'asker', 'until'))
local holds_ms = (tonumber(holds_until_ms or '') or 0) - now_ms
-- Times that are further away than any of ours were written by another program, and do not count.
if holds_ms > 0 and holds_ms <= LONGEST_VALID_MS then
  return {'known', holds_ms, found}
end
local left_ms = (tonumber(asker_until_ms or '') or 0) - now_ms
if left_ms > 0 and left_ms <= lease_ms and asker ~= worker then
  return {'wait', left_ms, ''}
end
redis.call('HSET', robots_key, 'asker', worker, 'until', string.format('%.0f', now_ms + lease_ms))
if redis.call('PTTL', robots_key) < lease_ms then
  redis.call('PEXPIRE', robots_key, lease_ms)
end
return {'ask', lease_ms, found or ''}
