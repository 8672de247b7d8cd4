-- Purpose: find the rate of "auto" upstreams, from what one worker reports of its requests; called after breaker.
-- The first report after a step's time has passed makes the step, so the whole fleet makes one. Reports are ignored
-- while the breaker is not closed.
-- A throttled request halves the rate at once (Jacobson's multiplicative decrease). Then the rate is searched between
-- the highest one that held (floor) and the one that was too high (wall), as BIC TCP does it; the search ends
-- within 5 % of the wall. After a minute without a throttled request it tries rates above the wall.
-- KEYS[1] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- ARGV[1..] for each upstream: its name, requests sent, requests throttled, µs that they took in all,
--   ceiling: requests a second, or 0
-- Returns how many upstreams were reported

local LEAST_RATE = 0.1
-- Without a wall the rate is multiplied by its growth at each step. After a cut the growth is slow, and the part of it
-- above 1 becomes larger with each step.
local FAST_GROWTH = 1.5
local SLOW_GROWTH = 1.05
local GROWTH_ACCELERATION = 1.5
-- The search has ended when the floor is at least this share of the wall.
local CLOSE_TO_WALL = 0.95
-- The wall is forgotten after this time without a cut; at low rates, after the time of this number of requests.
local QUIET_SECONDS = 60
local QUIET_REQUESTS = 400
-- The least length of a step: this time, and at low rates the time of this number of requests. A careful step, near a
-- wall, is longer.
local STEP_SECONDS = 1
local STEP_REQUESTS = 5
local CAREFUL_STEP_SECONDS = 3
local CAREFUL_STEP_REQUESTS = 20
-- With fewer requests in a step, the share of throttled ones is taken of this number.
local SAMPLE_REQUESTS = 20
-- A step in which fewer requests were sent than this share of the rate does not show that the rate holds.
local USED_SHARE = 0.6
-- The rate is halved by a cut, and its floor lowered by this factor.
local LOWER_FLOOR = 0.9
-- Requests queue at the upstream when they take longer than twice their usual time plus this.
local LATE_US = 50000
-- The share of a new latency in the usual one, when the upstream became slower.
local NEW_LATENCY_SHARE = 0.2
-- A second cut within this time means that the upstream now takes much less.
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
  -- The floor does not hold any more. After a second cut in a row it is far too high, else a little.
  if auto.rate <= auto.floor or wall <= auto.floor then
    local far_too_high = now_us - auto.cut < AGAIN_SECONDS * SECOND_US
    auto.floor = far_too_high and half or LOWER_FLOOR * math.min(auto.floor, wall)
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
    auto.growth = math.min(FAST_GROWTH, 1 + (auto.growth - 1) * GROWTH_ACCELERATION)
  elseif is_close then
    auto.rate = auto.floor
  else
    auto.rate = (auto.floor + auto.wall) / 2
  end
  if ceiling > 0 then auto.rate = math.min(auto.rate, ceiling) end
end

-- Requests became slow at a rate that held before. Either they queue at the upstream, or the upstream became slower for
-- another reason. Lower the rate a little at each step: if that makes requests fast again, they queued; if not, the
-- slower latency becomes the usual one.
local function ease(auto, mean_us)
  auto.wall = auto.rate
  auto.growth = SLOW_GROWTH
  auto.cut = now_us
  auto.floor = math.max(LEAST_RATE, LOWER_FLOOR * auto.floor)
  auto.rate = auto.floor
  auto.base = auto.base + NEW_LATENCY_SHARE * (mean_us - auto.base)
end

local function step_seconds(auto)
  local exploring = auto.rate > auto.floor
  if exploring and (auto.wall or auto.growth < FAST_GROWTH) then
    return math.max(CAREFUL_STEP_SECONDS, CAREFUL_STEP_REQUESTS / auto.rate)
  end
  return math.max(STEP_SECONDS, STEP_REQUESTS / auto.rate)
end

local function adapt(auto, rise_end_us, sent, throttled, micros, ceiling)
  if ceiling > 0 then auto.rate = math.min(auto.rate, ceiling) end
  auto.sent = auto.sent + sent
  auto.throttled = auto.throttled + throttled
  auto.micros = auto.micros + micros
  if throttled > 0 and now_us - auto.cut >= STEP_SECONDS * SECOND_US then
    local throttled_share = auto.throttled / math.max(auto.sent, SAMPLE_REQUESTS)
    return cut(auto, auto.rate * math.max(0.5, 1 - throttled_share))
  end
  -- Neither a pause nor the rise after it shows which rate the upstream takes.
  if now_us < rise_end_us then
    return begin_step(auto, rise_end_us)
  end
  auto.since = math.max(auto.since, rise_end_us)
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
  elseif auto.sent >= USED_SHARE * auto.rate * elapsed_seconds then
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
    local rise_end_us = (record.ends or 0) + (record.rise or 0)
    adapt(record.auto, rise_end_us, sent, tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]))
    write_record(upstream, record)
  end
end
keep_a_week(upstreams_key)
return #ARGV / ARGUMENTS_EACH
