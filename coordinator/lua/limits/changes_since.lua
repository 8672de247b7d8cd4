-- Purpose: list what changed at any upstream since the last call: pauses, breakers, overridden limits. Changes nothing,
-- unless another program has put numbers there that cannot be counted on.
-- KEYS[1] changes (zset: upstream -> number of its last change)
-- KEYS[2] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- KEYS[3] limits (hash: "rate UPSTREAM" -> msgpack {auto, {{count, seconds}, …}}; "concurrency UPSTREAM" -> number)
-- KEYS[4] state   KEYS[5] changed (stream: its last entry wakes the workers)
-- ARGV[1] number of the last change that is known
-- Returns {number of the last change that is listed, id of the last entry of changed, 1 if the run is paused, then for
--   each upstream that changed: its name, µs until its pause ends (negative when it has ended), µs for which the rate rises after it, breaker "" | "open" | "probing", µs until its next probe,
--   the status of the refusals that opened it or 0, rate or "", concurrency or ""}

local changes_key = KEYS[1]
local upstreams_key = KEYS[2]
local limits_key = KEYS[3]
local state_key = KEYS[4]
local changed_key = KEYS[5]
local known = tonumber(ARGV[1])
local MOST_CHANGES = 1e15
local MOST_LISTED = 1000
-- include: clock
-- include: upstream_record

local function breaker_word(breaker)
  if not breaker then return '' end
  return breaker.probing and 'probing' or 'open'
end

local last = tonumber(redis.call('ZREVRANGE', changes_key, 0, 0, 'WITHSCORES')[2] or '0')
if last > MOST_CHANGES then
  redis.call('DEL', changes_key)
  last = 0
end
if known > last then known = 0 end -- Redis lost its changes meanwhile: list all
local changed = redis.call('ZRANGEBYSCORE', changes_key, '(' .. known, '+inf', 'WITHSCORES', 'LIMIT', 0, MOST_LISTED)
if #changed == 2 * MOST_LISTED then last = tonumber(changed[#changed]) end
local entry = redis.call('XREVRANGE', changed_key, '+', '-', 'COUNT', 1)[1]
local result = {last, entry and entry[1] or '0-0', redis.call('HGET', state_key, 'paused') == '1' and 1 or 0}
for index = 1, #changed, 2 do
  local upstream = changed[index]
  local record = read_record(upstream)
  local breaker = record.breaker
  for _, value in ipairs({
    upstream,
    math.floor((record.ends or 0) - now_us),
    record.rise or 0,
    breaker_word(breaker),
    breaker and math.ceil(breaker.at - now_us) or 0,
    breaker and breaker.status or 0,
    redis.call('HGET', limits_key, 'rate ' .. upstream) or '',
    redis.call('HGET', limits_key, 'concurrency ' .. upstream) or '',
  }) do
    result[#result + 1] = value
  end
end
return result
