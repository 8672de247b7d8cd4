-- Purpose: find the rate of "auto" upstreams, from what one worker reports of its requests; called after breaker.
-- The first report after a step's time takes the step, so there is one for the whole fleet. Nothing is learnt while the
-- breaker is not closed.
-- Half at once for a throttled request (Jacobson's multiplicative decrease), then a search between what held (floor)
-- and what was throttled (wall), as BIC TCP does it, which settles within 5 % of the wall. After a quiet minute it
-- looks at what lies above.
-- KEYS[1] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- ARGV[1..] for each upstream: its name, requests sent, requests throttled, µs that they took in all,
--   ceiling: requests a second, or 0
-- Returns how many upstreams were reported

local LEAST_RATE = 0.1
local FAST_GROWTH = 1.5
local SLOW_GROWTH = 1.05
-- The floor is close to the wall from this share of it on; then the search has settled.
local CLOSE_TO_WALL = 0.95
-- The wall is forgotten after so many quiet seconds, and at low rates after so many requests.
local QUIET_SECONDS = 60
local QUIET_REQUESTS = 400
-- A step takes so long, and at low rates so many requests; a careful one, near a wall, takes longer.
local STEP_SECONDS = 1
local STEP_REQUESTS = 5
local CAREFUL_STEP_SECONDS = 3
local CAREFUL_STEP_REQUESTS = 20
-- The share of throttled requests is taken of at least so many.
local SAMPLE_REQUESTS = 20
-- Requests queue at the upstream when they take more than twice their usual time and this.
local LATE_US = 50000
-- A second cut within this time says that the upstream now bears much less.
local AGAIN_SECONDS = 10
local ARGUMENTS_EACH = 5
local upstreams_key = KEYS[1]
-- include: clock
-- include: upstream_record
-- include: keep_a_week

local function begin_step(auto, at_us)
  auto.since = at_us
  auto.sent = 0
  auto.throttled = 0
  auto.micros = 0
end

local function new_search()
  local auto = {rate = FIRST_AUTO_RATE, floor = 0, growth = FAST_GROWTH, cut = 0}
  begin_step(auto, now_us)
  return auto
end

local function cut(auto, wall)
  local half = math.max(LEAST_RATE, auto.rate / 2)
  -- What held holds no more: by a little, or by far.
  if auto.rate <= auto.floor or wall <= auto.floor then
    local by_far = now_us - auto.cut < AGAIN_SECONDS * SECOND_US
    auto.floor = by_far and half or 0.9 * math.min(auto.floor, wall)
  end
  auto.wall = wall
  auto.growth = SLOW_GROWTH
  auto.cut = now_us
  auto.rate = half
  begin_step(auto, now_us)
end

local function climb(auto, ceiling)
  auto.floor = math.max(auto.floor, auto.rate)
  local is_close = auto.wall and auto.floor >= CLOSE_TO_WALL * auto.wall
  local quiet_us = math.max(QUIET_SECONDS, QUIET_REQUESTS / auto.rate) * SECOND_US
  if is_close and now_us - auto.cut >= quiet_us then
    auto.wall = nil
  end
  if not auto.wall then
    auto.rate = auto.floor * auto.growth
    auto.growth = math.min(FAST_GROWTH, 1 + (auto.growth - 1) * 1.5)
  elseif is_close then
    auto.rate = auto.floor
  else
    auto.rate = (auto.floor + auto.wall) / 2
  end
  if ceiling > 0 then auto.rate = math.min(auto.rate, ceiling) end
end

-- At a rate that held for long requests queue up now, or the upstream became slower by itself: go down until it is
-- clear which, and take the latency then for its usual one.
local function ease(auto, mean_us)
  auto.wall = auto.rate
  auto.growth = SLOW_GROWTH
  auto.cut = now_us
  auto.floor = math.max(LEAST_RATE, 0.9 * auto.floor)
  auto.rate = auto.floor
  auto.base = auto.base + 0.2 * (mean_us - auto.base)
end

local function step_seconds(auto)
  local exploring = auto.rate > auto.floor
  if exploring and (auto.wall or auto.growth < FAST_GROWTH) then
    return math.max(CAREFUL_STEP_SECONDS, CAREFUL_STEP_REQUESTS / auto.rate)
  end
  return math.max(STEP_SECONDS, STEP_REQUESTS / auto.rate)
end

local function adapt(auto, ramp_end_us, sent, throttled, micros, ceiling)
  if ceiling > 0 then auto.rate = math.min(auto.rate, ceiling) end
  auto.sent = auto.sent + sent
  auto.throttled = auto.throttled + throttled
  auto.micros = auto.micros + micros
  if throttled > 0 and now_us - auto.cut >= STEP_SECONDS * SECOND_US then
    local throttled_share = auto.throttled / math.max(auto.sent, SAMPLE_REQUESTS)
    return cut(auto, auto.rate * math.max(0.5, 1 - throttled_share))
  end
  -- Neither a pause nor the rise after it shows what the upstream bears.
  if now_us < ramp_end_us then
    return begin_step(auto, ramp_end_us)
  end
  auto.since = math.max(auto.since, ramp_end_us)
  local elapsed_seconds = (now_us - auto.since) / SECOND_US
  if elapsed_seconds < step_seconds(auto) then
    return
  end
  local mean_us = auto.micros / auto.sent
  auto.base = math.min(auto.base or mean_us, mean_us)
  if mean_us > 2 * auto.base + LATE_US and auto.rate >= auto.floor then
    if auto.rate > auto.floor then
      return cut(auto, auto.rate)
    end
    ease(auto, mean_us)
  elseif auto.sent >= 0.6 * auto.rate * elapsed_seconds then
    climb(auto, ceiling)
  end
  begin_step(auto, now_us)
end

for at = 1, #ARGV, ARGUMENTS_EACH do
  local upstream = ARGV[at]
  local sent = tonumber(ARGV[at + 1])
  local record = read_record(upstream)
  if not record.breaker and sent > 0 then
    record.auto = record.auto or new_search()
    local ramp_end_us = (record.ends or 0) + (record.ramp or 0)
    adapt(record.auto, ramp_end_us, sent, tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]))
    write_record(upstream, record)
  end
end
keep_a_week(upstreams_key)
return #ARGV / ARGUMENTS_EACH
