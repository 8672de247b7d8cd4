-- Purpose: book the next evenly spaced slots of one upstream for one worker (GCRA, burst 1, on Redis TIME).
-- KEYS[1] slots (string: the next free slot, µs)   KEYS[2] pauses (hash: upstream -> end of pause, µs)
-- ARGV[1] upstream   ARGV[2] interval between slots, µs, may have a fraction   ARGV[3] slots wanted
-- ARGV[4] horizon, µs: how far ahead slots may be booked
-- Returns {granted, µs from now to the first granted slot} | {0, µs from now until it is worth asking again}
-- Times have 16 digits, which Lua's own conversion would round: they are formatted with %.0f.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval = tonumber(ARGV[2])
local paused = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
local first = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), paused, now)
local horizon = now + tonumber(ARGV[4])
if first > horizon then
  return {0, math.ceil(first - horizon)}
end
local granted = math.min(tonumber(ARGV[3]), math.floor((horizon - first) / interval) + 1)
redis.call('SET', KEYS[1], string.format('%.3f', first + granted * interval), 'PX', math.ceil(60000 + granted * interval / 1000))
return {granted, math.floor(first - now)}
