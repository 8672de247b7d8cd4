-- Purpose: one worker of the fleet asks an origin for its robots.txt; the others wait for what it found.
-- KEYS[1] robots (hash of one origin)
-- ARGV[1] worker   ARGV[2] how long it may take to ask, ms
-- Returns {"known", ms that it holds, what was found}, {"ask", ms to do so, what was found before or ""} or
-- {"wait", ms until whoever asks must be done, ""}; the same worker may call again
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = redis.call('HMGET', KEYS[1], 'found', 'holds', 'asker', 'until')
local holds = tonumber(kept[2] or '0') - now
if holds > 0 then
  return {'known', holds, kept[1]}
end
local left = tonumber(kept[4] or '0') - now
if left > 0 and kept[3] ~= ARGV[1] then
  return {'wait', left, ''}
end
redis.call('HSET', KEYS[1], 'asker', ARGV[1], 'until', string.format('%.0f', now + ARGV[2]))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return {'ask', tonumber(ARGV[2]), kept[1] or ''}
