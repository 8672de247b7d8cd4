-- Purpose: reserve the next evenly spaced slots of one upstream for one worker, within all windows of its rate.
-- The shortest window is spaced evenly (GCRA with a burst of 1, on the clock of Redis). Each longer one is counted
-- exactly, in a ring of 60 buckets and one more for the bucket that is just ending, so no sliding window ever has more
-- requests than its count (the sliding window counter, without the weighting that makes it an estimate). A GCRA with a
-- burst would have to keep its lasting rate lower by what the burst lets through at once.
-- After a pause the rate rises: from a quarter to all of it; without a rate from 10/s to 10,000/s, then without a bound.
-- While the breaker is not closed, one probe at a time is granted.
-- Who gets fewer slots than it wants gets a turn to ask again: else all workers would ask whenever one slot is free, and
-- each once more after a slot that it got. A turn binds nobody.
-- Turns are closer together than the slots, because some workers die, or have no request any more.
-- KEYS[1] slots (hash: last -> the last slot, µs; turn -> "µs interval" of the last turn; LENGTH:N -> "bucket count" of a window)
-- KEYS[2] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- KEYS[3] changes (zset: upstream -> number of its last change)
-- KEYS[4] changed (stream: its last entry wakes the workers)
-- ARGV[1] upstream   ARGV[2] slots wanted   ARGV[3] msgpack {auto, {{count, seconds}, …} shortest first}
-- ARGV[4] horizon, µs: how far ahead slots may be reserved
-- ARGV[5] margin: the factor by which slots are further apart than the rate says
-- ARGV[6] µs until the turn that the worker has already; 0 or less: it has none
-- Returns {granted, µs from now to the first, µs between them as text, µs until it is worth asking again, 0: at any time}
-- Times have 16 digits, which Lua's own conversion would round: they are formatted with %.0f.

local WINDOW_BUCKETS = 60
-- One call grants at most the slots of this time, so that all workers get some.
local LONGEST_GRANT_US = 25000
local RISE_FIRST_SHARE = 0.25
local RISE_FIRST_RATE = 10
local RISE_GROWTH = 1000
local PROBE_TIMEOUT_US = 30000000
local SLOTS_KEPT_MS = 60000
local TURN_SHARE = 0.8
local MOST_TURN_US = 2000000
local ROUNDING_US = 100
local MOST_DIGITS = 32 -- of a bucket's number and count
local slots_key = KEYS[1]
local upstreams_key = KEYS[2]
local changes_key = KEYS[3]
local changed_key = KEYS[4]
local upstream = ARGV[1]
local wanted = tonumber(ARGV[2])
local auto, windows = unpack(cmsgpack.unpack(ARGV[3]))
local horizon_us = tonumber(ARGV[4])
local margin = tonumber(ARGV[5])
local own_turn_us = tonumber(ARGV[6])
-- include: clock
-- include: upstream_record
-- include: bump_change
-- include: keep_a_week

local function nothing_until(at_us)
  return {0, 0, '0', math.ceil(at_us - now_us)}
end

local record = read_record(upstream)
local pause_end_us = record.ends or 0
local rise_us = record.rise or 0
local breaker = record.breaker
if breaker then
  if breaker.at > now_us then
    return nothing_until(breaker.at)
  end
  wanted = 1
end

-- The time between two slots: by the shortest window and the rate of "auto", longer while the rate rises.
local interval_us = 0
if windows[1] then
  interval_us = windows[1][2] * SECOND_US / windows[1][1]
end
if auto then
  interval_us = math.max(interval_us, SECOND_US / (record.auto and record.auto.rate or FIRST_AUTO_RATE))
end
local latest_us = now_us + horizon_us
local last_slot_us = tonumber(redis.call('HGET', slots_key, 'last') or '') or 0
-- No call reserves beyond its horizon: another program has written this, or the clock of Redis was set back.
if not (last_slot_us <= latest_us) then last_slot_us = now_us end
local risen = (math.max(last_slot_us, now_us, pause_end_us) - pause_end_us) / rise_us
if rise_us > 0 and risen < 1 then
  if interval_us > 0 then
    interval_us = interval_us / (RISE_FIRST_SHARE + (1 - RISE_FIRST_SHARE) * risen)
  else
    interval_us = SECOND_US / (RISE_FIRST_RATE * RISE_GROWTH ^ risen)
  end
end
interval_us = interval_us * margin
local first_us = math.max(last_slot_us + interval_us, pause_end_us, now_us)
local most_granted = interval_us > 0 and math.max(1, math.floor(LONGEST_GRANT_US / interval_us + 0.5)) or wanted
local turn_spacing_us = TURN_SHARE * interval_us * math.min(wanted, most_granted)
local interval_text = string.format('%.3f', interval_us)

-- The last turn that was given, 0 without one. Turns of another rate are void, and so are those that are not ours.
local function read_turn()
  local text = redis.call('HGET', slots_key, 'turn') or ''
  local last_turn, of_interval = string.match(text, '^(%d+) (%S+)$')
  if of_interval ~= interval_text or #text > 2 * MOST_DIGITS then return 0 end
  return tonumber(last_turn) <= now_us + MOST_TURN_US and tonumber(last_turn) or 0
end

local function write_turn(turn_us)
  redis.call('HSET', slots_key, 'turn', string.format('%.0f %s', turn_us, interval_text))
end

local last_turn_us = read_turn()

-- When to ask for the slot at `free_us`, which is beyond the horizon.
local function again_at(free_us)
  -- Of a low rate a turn that comes late costs a slot. Who comes a little before its turn, as clocks are rounded, keeps it.
  local without_turns = interval_us == 0 or interval_us > horizon_us or pause_end_us > latest_us
  if without_turns or free_us - latest_us < ROUNDING_US then return free_us - horizon_us end
  if own_turn_us > 0 and now_us + own_turn_us <= last_turn_us then return now_us + own_turn_us end
  local next_turn_us = math.min(last_turn_us + turn_spacing_us, now_us + MOST_TURN_US)
  next_turn_us = math.max(free_us - horizon_us, next_turn_us)
  write_turn(next_turn_us)
  return next_turn_us
end

if first_us > latest_us then return nothing_until(again_at(first_us)) end

local granted = wanted
if interval_us > 0 then
  local before_horizon = math.floor((latest_us - first_us) / interval_us) + 1
  granted = math.min(wanted, before_horizon, most_granted)
end

-- For each longer window: how many slots it still allows, and the bucket in which they will be counted.
local counted = {}
local lifetime_ms = SLOTS_KEPT_MS + granted * interval_us / 1000
for index = 2, #windows do
  local most, seconds = unpack(windows[index])
  local length = string.format('%.0f', seconds)
  local bucket_us = seconds * SECOND_US / WINDOW_BUCKETS
  local bucket = math.floor(first_us / bucket_us)
  local fields = {}
  for place = 0, WINDOW_BUCKETS do
    fields[place + 1] = length .. ':' .. place
  end
  local live = {}
  local used = 0
  for _, text in ipairs(redis.call('HMGET', slots_key, unpack(fields))) do
    local number, count = string.match(text or '', '^(%d+) (%d+)$')
    if number and #text < MOST_DIGITS and tonumber(number) >= bucket - WINDOW_BUCKETS and tonumber(number) <= bucket then
      live[#live + 1] = {number = tonumber(number), count = tonumber(count)}
      used = used + count
    end
  end
  table.sort(live, function(one, other) return one.number < other.number end)
  if used + 1 > most then
    for _, oldest in ipairs(live) do
      used = used - oldest.count
      if used + 1 <= most then
        return nothing_until((oldest.number + WINDOW_BUCKETS + 1) * bucket_us)
      end
    end
  end
  local before_next_bucket = math.ceil(((bucket + 1) * bucket_us - first_us) / interval_us)
  granted = math.min(granted, math.floor(most - used), before_next_bucket)
  local newest = live[#live]
  counted[#counted + 1] = {
    field = length .. ':' .. string.format('%.0f', bucket % (WINDOW_BUCKETS + 1)),
    bucket = bucket,
    before = newest and newest.number == bucket and newest.count or 0,
  }
  lifetime_ms = math.max(lifetime_ms, (seconds + bucket_us / SECOND_US) * 1000)
end

for _, one in ipairs(counted) do
  redis.call('HSET', slots_key, one.field, string.format('%.0f %.0f', one.bucket, one.before + granted))
end
-- It does not need its turn any more: the next one who gets a turn has it.
if own_turn_us > 0 and last_turn_us > 0 then
  last_turn_us, own_turn_us = math.max(0, last_turn_us - turn_spacing_us), 0
  write_turn(last_turn_us)
end
redis.call('HSET', slots_key, 'last', string.format('%.3f', first_us + (granted - 1) * interval_us))
local free_us = first_us + granted * interval_us
local again_us = granted < wanted and free_us > latest_us and math.ceil(again_at(free_us) - now_us) or 0
redis.call('PEXPIRE', slots_key, math.ceil(lifetime_ms))
if breaker then
  breaker.probing = true
  breaker.at = now_us + PROBE_TIMEOUT_US
  write_record(upstream, record)
  bump_change(upstream)
  keep_a_week(upstreams_key)
  keep_a_week(changes_key)
end
return {granted, math.max(0, math.floor(first_us - now_us)), string.format('%.3f', interval_us), again_us}
