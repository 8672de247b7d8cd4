-- Purpose: book the next evenly spaced slots of one upstream for one worker, within all windows of its rate.
-- The shortest window is spaced evenly (GCRA with a burst of 1, on Redis TIME). Each longer one is counted exactly: a
-- ring of 60 buckets and the one that is just ending, so no sliding window ever holds more than its count (the sliding
-- window counter, without the weighting that makes it an estimate). A GCRA with a burst would lose as much of the
-- lasting rate as it lets through at once.
-- After a pause the rate rises: from a quarter to all of it, or without a rate from 10/s to 10,000/s and then unbound.
-- While the breaker is not closed one probe is granted at a time.
-- KEYS[1] slots (hash: last -> the last slot, µs; LENGTH:N -> "bucket count" of a window)
-- KEYS[2] upstreams (hash: upstream -> msgpack {ends, ramp, breaker, auto}, see note)   KEYS[3] changes (zset)
-- ARGV[1] upstream   ARGV[2] slots wanted   ARGV[3] msgpack {auto, {{count, seconds}, …} shortest first}
-- ARGV[4] horizon, µs: how far ahead slots may be booked   ARGV[5] margin: slots are so many times further apart
-- Returns {granted, µs from now to the first, µs between them as text} | {0, µs until it is worth asking again, '0'}
-- Times have 16 digits, which Lua's own conversion would round: they are formatted with %.0f.
local BUCKETS, SHARE, FIRST_RATE, PROBE_PATIENCE, WEEK = 60, 0.025, 10, 30000000, 604800
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local packed = redis.call('HGET', KEYS[2], ARGV[1])
local record = packed and cmsgpack.unpack(packed) or {}
local ends, ramp, breaker = record.ends or 0, record.ramp or 0, record.breaker
local auto, windows = unpack(cmsgpack.unpack(ARGV[3]))
local wanted = tonumber(ARGV[2])
if breaker then
  if breaker.at > now then
    return {0, math.ceil(breaker.at - now), '0'}
  end
  wanted = 1
end

local interval = 0
if windows[1] then
  interval = windows[1][2] * 1000000 / windows[1][1]
end
if auto then
  interval = math.max(interval, 1000000 / (record.auto and record.auto.rate or FIRST_RATE))
end
local last = tonumber(redis.call('HGET', KEYS[1], 'last') or '0')
local risen = (math.max(last, now, ends) - ends) / ramp
if ramp > 0 and risen < 1 then
  if interval > 0 then
    interval = interval / (0.25 + 0.75 * risen)
  else
    interval = 1000000 / (10 * 1000 ^ risen)
  end
end
interval = interval * tonumber(ARGV[5])
local first = math.max(last + interval, ends, now)
local horizon = now + tonumber(ARGV[4])
if first > horizon then
  return {0, math.ceil(first - horizon), '0'}
end

local granted = wanted
if interval > 0 then
  granted = math.min(wanted, math.floor((horizon - first) / interval) + 1)
  granted = math.min(granted, math.max(1, math.floor(SHARE * 1000000 / interval + 0.5)))
end
local counted, lifetime = {}, 60000 + granted * interval / 1000
for index = 2, #windows do
  local count, seconds = windows[index][1], windows[index][2]
  local length, grain = string.format('%.0f', seconds), seconds * 1000000 / BUCKETS
  local bucket = math.floor(first / grain)
  local fields, live, used = {}, {}, 0
  for place = 0, BUCKETS do
    fields[place + 1] = length .. ':' .. place
  end
  for _, text in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do
    local number, many = string.match(text or '', '^(%d+) (%d+)$')
    if number and tonumber(number) >= bucket - BUCKETS then
      live[#live + 1] = {tonumber(number), tonumber(many)}
      used = used + many
    end
  end
  table.sort(live, function(one, other) return one[1] < other[1] end)
  if used + 1 > count then
    for _, old in ipairs(live) do
      used = used - old[2]
      if used + 1 <= count then
        return {0, math.ceil((old[1] + BUCKETS + 1) * grain - now), '0'}
      end
    end
  end
  granted = math.min(granted, math.floor(count - used), math.ceil(((bucket + 1) * grain - first) / interval))
  local newest = live[#live]
  counted[#counted + 1] = length .. ':' .. string.format('%.0f', bucket % (BUCKETS + 1))
  counted[#counted + 1] = {bucket, newest and newest[1] == bucket and newest[2] or 0}
  lifetime = math.max(lifetime, (seconds + grain / 1000000) * 1000)
end
for index = 1, #counted, 2 do
  local bucket, before = unpack(counted[index + 1])
  redis.call('HSET', KEYS[1], counted[index], string.format('%.0f %.0f', bucket, before + granted))
end
redis.call('HSET', KEYS[1], 'last', string.format('%.3f', first + (granted - 1) * interval))
redis.call('PEXPIRE', KEYS[1], math.ceil(lifetime))
if breaker then
  breaker.probing = true
  breaker.at = now + PROBE_PATIENCE
  redis.call('HSET', KEYS[2], ARGV[1], cmsgpack.pack(record))
  local top = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')
  redis.call('ZADD', KEYS[3], (top[2] or 0) + 1, ARGV[1])
  redis.call('EXPIRE', KEYS[2], WEEK)
  redis.call('EXPIRE', KEYS[3], WEEK)
end
return {granted, math.max(0, math.floor(first - now)), string.format('%.3f', interval)}
