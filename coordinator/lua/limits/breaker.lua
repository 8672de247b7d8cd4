-- Purpose: open, probe and close the breakers of upstreams, from what one worker reports of its requests.
-- The first report after a probe, or after one failure too many, decides for the whole fleet.
-- Breaker (Nygard, "Release It!"): opens when of at least 20 requests in 10 s more than 90 % failed; lets one probe at a
-- time through, after 1, 2, 4, … 60 s; closes after 3 good ones in a row, and the rate rises as after a pause.
-- KEYS[1] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- KEYS[2] changes (zset: upstream -> number of its last change)   KEYS[3] limits: only its lifetime is extended
-- KEYS[4..] health of each reported upstream (string: msgpack of {{second, sent, failed}, …})
-- ARGV[1..] for each of these: upstream, requests sent, requests failed
-- Returns how many upstreams were reported

local HEALTH_SECONDS = 10
local LEAST_REQUESTS = 20
local FAILED_SHARE = 0.9
local FIRST_WAIT_SECONDS = 1
local LONGEST_WAIT_SECONDS = 60
local GOOD_PROBES = 3
local RISE_US = 5000000
local FIRST_HEALTH_AT = 4
local upstreams_key = KEYS[1]
local changes_key = KEYS[2]
local limits_key = KEYS[3]
-- include: clock
-- include: upstream_record
-- include: bump_change
-- include: keep_a_week

-- Add a report to the last ten seconds of an upstream; returns whether they show that it is down.
local function is_down(health_key, sent, failed)
  local packed = redis.call('GET', health_key)
  local this_second = math.floor(now_us / SECOND_US)
  local kept = {}
  for _, second in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if second[1] == this_second then
      second[2] = second[2] + sent
      second[3] = second[3] + failed
      sent = 0
      failed = 0
    end
    if second[1] > this_second - HEALTH_SECONDS then kept[#kept + 1] = second end
  end
  if sent > 0 then kept[#kept + 1] = {this_second, sent, failed} end
  redis.call('SET', health_key, cmsgpack.pack(kept), 'EX', HEALTH_SECONDS + 1)
  local all_sent = 0
  local all_failed = 0
  for _, second in ipairs(kept) do
    all_sent = all_sent + second[2]
    all_failed = all_failed + second[3]
  end
  return all_sent >= LEAST_REQUESTS and all_failed > FAILED_SHARE * all_sent
end

-- Enter the result of a probe; returns whether the breaker closes.
local function closes_after_probe(breaker, sent, failed)
  breaker.probing = false
  breaker.at = now_us
  if failed > 0 then
    breaker.good = 0
    breaker.wait = math.min(LONGEST_WAIT_SECONDS, breaker.wait * 2)
    breaker.at = now_us + breaker.wait * SECOND_US
  else
    breaker.good = breaker.good + sent
  end
  return breaker.good >= GOOD_PROBES
end

-- Returns whether the record changed.
local function report(record, health_key, sent, failed)
  local breaker = record.breaker
  if not breaker then
    if not is_down(health_key, sent, failed) then return false end
    local first_probe_us = now_us + FIRST_WAIT_SECONDS * SECOND_US
    record.breaker = {at = first_probe_us, wait = FIRST_WAIT_SECONDS, good = 0, probing = false}
    return true
  end
  -- While it is open and no probe is under way, reports are of requests that left before it opened: ignore them.
  if not breaker.probing then return false end
  if closes_after_probe(breaker, sent, failed) then
    record.breaker = nil
    record.ends = math.max(record.ends or 0, now_us)
    record.rise = RISE_US
    redis.call('DEL', health_key)
  end
  return true
end

for index = FIRST_HEALTH_AT, #KEYS do
  local at = (index - FIRST_HEALTH_AT) * 3
  local upstream = ARGV[at + 1]
  local record = read_record(upstream)
  if report(record, KEYS[index], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])) then
    write_record(upstream, record)
    bump_change(upstream)
  end
end
keep_a_week(upstreams_key)
keep_a_week(changes_key)
keep_a_week(limits_key)
return #KEYS - FIRST_HEALTH_AT + 1
