-- Purpose: open, probe and close the breakers of upstreams, from what one worker reports of its requests.
-- The first report after a probe, or after one failure too many, decides for the whole fleet.
-- Breaker (Nygard, "Release It!"): opens when of at least 20 requests in 10 s more than 90 % failed, or when so many
-- responses in a row as the job says were 401, 403 or 407; lets one probe at a time through, after 1, 2, 4, … 60 s;
-- closes after 3 good ones in a row, after one where refusals opened it, and the rate rises as after a pause.
-- Refusals that turned out to be of some keys only are no sign for the next time: then it takes 4 times as many.
-- Refused responses are in a row when no worker had a good one since the first of them came, whoever reports first.
-- KEYS[1] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- KEYS[2] changes (zset: upstream -> number of its last change)   KEYS[3] limits: only its lifetime is extended
-- KEYS[4] changed (stream: its last entry wakes the workers)
-- KEYS[5] requests (hash: upstream -> "sent throttled failed", since the run began)
-- KEYS[6] active (zset: upstream -> second in which it was sent to last)
-- KEYS[7..] health of each reported upstream (string: msgpack of {seconds: {{second, sent, failed}, …}, refused: how
--   many responses in a row were refused, row_us: when the first of them came, most: how many of them open its breaker})
-- ARGV[1] refused responses in a row that open a breaker, 0: none do
-- ARGV[2..] for each of the upstreams: its name, requests sent, requests failed, responses that decided their keys, how
--   long ago the last good one of these came (us), how many of the last were refused, how long ago the first of those
--   came (us), the status of the last refused one, requests throttled that did not fail
-- Returns for each breaker that refusals opened: upstream, status, refused in a row; for each that good probes then
--   closed: upstream, 0, 0

local HEALTH_SECONDS = 10
local LEAST_REQUESTS = 20
local FAILED_SHARE = 0.9
local FIRST_WAIT_SECONDS = 1
local LONGEST_WAIT_SECONDS = 60
local GOOD_PROBES = 3
local MORE_REFUSALS = 4
local RISE_US = 5000000
local REFUSED_KEPT_SECONDS = 86400
local ACTIVE_SECONDS = 60
local FIRST_HEALTH_AT = 7
local ARGUMENTS_EACH = 9
-- A run can have millions of hosts. Those that come after the first thousand are counted together.
local MOST_COUNTED = 1000
local OTHER = 'other'
local LONGEST_COUNTS = 47 -- longer ones are none of ours
local upstreams_key = KEYS[1]
local changes_key = KEYS[2]
local limits_key = KEYS[3]
local changed_key = KEYS[4]
local requests_key = KEYS[5]
local active_key = KEYS[6]
local most_refused = tonumber(ARGV[1])
-- include: clock
-- include: upstream_record
-- include: bump_change
-- include: keep_a_week

-- The health that is stored; an empty one when there is none, or none of ours.
local function read_health(health_key)
  local packed = redis.call('GET', health_key)
  local unpacked, health = pcall(cmsgpack.unpack, packed or '')
  if not unpacked or type(health) ~= 'table' or not is_number(health.refused or 0, 0, 1e15) then return {} end
  if not is_number(health.row_us or 0, 0, now_us) then return {} end
  if type(health.seconds or {}) ~= 'table' then return {} end
  for _, second in ipairs(health.seconds or {}) do
    if type(second) ~= 'table' then return {} end
    for place = 1, 3 do
      if not is_number(second[place], 0, now_us) then return {} end
    end
  end
  return health
end

-- Add a report to the last ten seconds of an upstream; returns whether they show that it is down.
local function is_down(health, sent, failed)
  local this_second = math.floor(now_us / SECOND_US)
  local kept = {}
  for _, second in ipairs(health.seconds or {}) do
    if second[1] == this_second then
      second[2] = second[2] + sent
      second[3] = second[3] + failed
      sent = 0
      failed = 0
    end
    if second[1] > this_second - HEALTH_SECONDS then kept[#kept + 1] = second end
  end
  if sent > 0 then kept[#kept + 1] = {this_second, sent, failed} end
  health.seconds = kept
  local all_sent = 0
  local all_failed = 0
  for _, second in ipairs(kept) do
    all_sent = all_sent + second[2]
    all_failed = all_failed + second[3]
  end
  return all_sent >= LEAST_REQUESTS and all_failed > FAILED_SHARE * all_sent
end

local function keep(health, health_key)
  local seconds = (health.most or (health.refused or 0) > 0) and REFUSED_KEPT_SECONDS or HEALTH_SECONDS + 1
  redis.call('SET', health_key, cmsgpack.pack(health), 'EX', seconds)
end

-- Add a report to the refused responses in a row; returns whether they are too many.
local function is_unauthorized(health, decided, good_us, refused, row_us)
  -- Without the times, a report that comes late would begin the row anew by responses that came before it.
  if refused < decided and good_us >= (health.row_us or 0) then health.refused = 0 end
  if refused > 0 then
    if (health.refused or 0) == 0 then health.row_us = row_us end
    health.refused = (health.refused or 0) + refused
  end
  return most_refused > 0 and (health.refused or 0) >= (health.most or most_refused)
end

-- Enter the result of a probe; returns whether the breaker closes.
local function closes_after_probe(breaker, sent, failed, decided, refused)
  -- What opened a breaker by refusals is mended only when the upstream lets a request through; a redirect is neither.
  local bad = failed > 0 or (breaker.status and refused > 0)
  local good = breaker.status and decided or sent
  breaker.probing = false
  breaker.at = now_us
  if bad then
    breaker.good = 0
    breaker.wait = math.min(LONGEST_WAIT_SECONDS, breaker.wait * 2)
    breaker.at = now_us + breaker.wait * SECOND_US
  else
    breaker.good = breaker.good + good
  end
  -- One request that is let through shows that not everybody is refused.
  return breaker.good >= (breaker.status and 1 or GOOD_PROBES)
end

local function count_requests(upstream, sent, throttled, failed)
  local counted = redis.call('HGET', requests_key, upstream)
  if not counted and redis.call('HLEN', requests_key) >= MOST_COUNTED then
    upstream = OTHER
    counted = redis.call('HGET', requests_key, OTHER)
  end
  if not counted or #counted > LONGEST_COUNTS then counted = '' end
  local sent_before, throttled_before, failed_before = string.match(counted, '^(%d+) (%d+) (%d+)$')
  local counts = {(sent_before or 0) + sent, (throttled_before or 0) + throttled, (failed_before or 0) + failed}
  redis.call('HSET', requests_key, upstream, string.format('%.0f %.0f %.0f', unpack(counts)))
end

local result = {}
local function tell(upstream, status, refused)
  for _, value in ipairs({upstream, status, refused}) do
    result[#result + 1] = value
  end
end

-- Returns whether the record changed.
local function report(upstream, record, health_key, sent, failed, decided, good_ago_us, refused, row_ago_us, status)
  local breaker = record.breaker
  if not breaker then
    local health = read_health(health_key)
    local down = is_down(health, sent, failed)
    local unauthorized = is_unauthorized(health, decided, now_us - good_ago_us, refused, now_us - row_ago_us)
    keep(health, health_key)
    if not down and not unauthorized then return false end
    local first_probe_us = now_us + FIRST_WAIT_SECONDS * SECOND_US
    record.breaker = {at = first_probe_us, wait = FIRST_WAIT_SECONDS, good = 0, probing = false}
    if unauthorized then
      record.breaker.status = status
      record.breaker.refused = health.refused
      record.breaker.most = health.most or most_refused
      tell(upstream, status, health.refused)
    end
    return true
  end
  -- While it is open and no probe is under way, reports are of requests that left before it opened: ignore them.
  if not breaker.probing then return false end
  if closes_after_probe(breaker, sent, failed, decided, refused) then
    if breaker.status then tell(upstream, 0, 0) end
    record.breaker = nil
    record.ends = math.max(record.ends or 0, now_us)
    record.rise = RISE_US
    keep({most = breaker.most and breaker.most * MORE_REFUSALS}, health_key)
  end
  return true
end

for index = FIRST_HEALTH_AT, #KEYS do
  local at = (index - FIRST_HEALTH_AT) * ARGUMENTS_EACH + 2
  local upstream = ARGV[at]
  local numbers = {}
  for place = 1, ARGUMENTS_EACH - 1 do
    numbers[place] = tonumber(ARGV[at + place])
  end
  if numbers[1] > 0 then
    count_requests(upstream, numbers[1], numbers[8], numbers[2])
    redis.call('ZADD', active_key, math.floor(now_us / SECOND_US), upstream)
  end
  local record = read_record(upstream)
  if report(upstream, record, KEYS[index], unpack(numbers)) then
    write_record(upstream, record)
    bump_change(upstream)
  end
end
redis.call('ZREMRANGEBYSCORE', active_key, '-inf', math.floor(now_us / SECOND_US) - ACTIVE_SECONDS)
redis.call('EXPIRE', active_key, ACTIVE_SECONDS)
keep_a_week(upstreams_key)
keep_a_week(changes_key)
keep_a_week(limits_key)
keep_a_week(requests_key)
return result
