-- Purpose: list what changed at any upstream since the last call: pauses, breakers, overridden limits. Changes nothing.
-- KEYS[1] changes (zset: upstream -> number of its last change)
-- KEYS[2] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- KEYS[3] limits (hash: "rate UPSTREAM" -> msgpack {auto, {{count, seconds}, …}}; "concurrency UPSTREAM" -> number)
-- ARGV[1] number of the last change that is known
-- Returns {number of the last change, then for each upstream that changed: its name, µs until its pause ends (negative
--   when it has ended), µs for which the rate rises after it, breaker "" | "open" | "probing", µs until its next probe,
--   rate or "", concurrency or ""}

local changes_key = KEYS[1]
local upstreams_key = KEYS[2]
local limits_key = KEYS[3]
local known = tonumber(ARGV[1])
-- include: clock
-- include: upstream_record

local function breaker_word(breaker)
  if not breaker then return '' end
  return breaker.probing and 'probing' or 'open'
end

local last = tonumber(redis.call('ZREVRANGE', changes_key, 0, 0, 'WITHSCORES')[2] or '0')
if known > last then known = 0 end -- Redis lost its changes meanwhile: list all
local result = {last}
for _, upstream in ipairs(redis.call('ZRANGEBYSCORE', changes_key, '(' .. known, '+inf')) do
  local record = read_record(upstream)
  local breaker = record.breaker
  for _, value in ipairs({
    upstream,
    math.floor((record.ends or 0) - now_us),
    record.rise or 0,
    breaker_word(breaker),
    breaker and math.ceil(breaker.at - now_us) or 0,
    redis.call('HGET', limits_key, 'rate ' .. upstream) or '',
    redis.call('HGET', limits_key, 'concurrency ' .. upstream) or '',
  }) do
    result[#result + 1] = value
  end
end
return result
