-- Purpose: what came of requests, told by one worker: it opens and closes breakers, and finds the rate of "auto".
-- Whoever tells first after a step's time takes the step, so there is one for the whole fleet.
-- Breaker (Nygard, "Release It!"): opens when of at least 20 requests in 10 s more than 90 % failed; probes one at a
-- time after 1, 2, 4, … 60 s; closes after 3 good ones, and the rate rises as after a pause.
-- Auto rate: half at once for a throttled request (Jacobson's multiplicative decrease), then a search between what
-- held (floor) and what was throttled (wall), as BIC TCP does it, which settles within 5 % of the wall. After a quiet
-- minute it tries what lies above.
-- KEYS[1] upstreams (hash: upstream -> msgpack {ends and ramp: its last pause, µs; breaker {at, wait, good, probing};
--   auto {rate, floor, wall, growth, since, cut, sent, throttled, micros, base}})
-- KEYS[2] changes (zset: upstream -> number of its last change)   KEYS[3] limits, kept alive only
-- KEYS[4…] health of each upstream told of (string: msgpack of {{second, sent, failed}, …})
-- ARGV[1…] for each of these: upstream, sent, throttled, failed, µs that they took in all,
--   "auto" or empty, ceiling: requests a second or 0
-- Returns how many upstreams were told of
local SPAN, LEAST, FAILING, LONGEST_WAIT, GOOD, RAMP = 10, 20, 0.9, 60, 3, 5
local FIRST_RATE, LEAST_RATE, FAST, SLOW, CLOSE, QUIET = 10, 0.1, 1.5, 1.05, 0.95, 60
local STEP, HOLD, QUICK, RARE, SAMPLE, LATE, AGAIN = 1, 3, 5, 400, 20, 50000, 10
local SECOND, WEEK = 1000000, 604800
local time = redis.call('TIME')
local now = time[1] * SECOND + time[2]

-- Whether the last ten seconds show an upstream that is down.
local function is_down(index, sent, failed)
  local packed = redis.call('GET', KEYS[index])
  local this, seen = math.floor(now / SECOND), {}
  for _, second in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if second[1] == this then
      second[2], second[3] = second[2] + sent, second[3] + failed
      sent, failed = 0, 0
    end
    if second[1] > this - SPAN then seen[#seen + 1] = second end
  end
  if sent > 0 then seen[#seen + 1] = {this, sent, failed} end
  redis.call('SET', KEYS[index], cmsgpack.pack(seen), 'EX', SPAN + 1)
  local of, bad = 0, 0
  for _, second in ipairs(seen) do
    of, bad = of + second[2], bad + second[3]
  end
  return of >= LEAST and bad > FAILING * of
end

-- What a probe's end makes of the breaker; true when it closes.
local function probed(breaker, sent, failed)
  breaker.probing, breaker.at = false, now
  if failed > 0 then
    breaker.good, breaker.wait = 0, math.min(LONGEST_WAIT, breaker.wait * 2)
    breaker.at = now + breaker.wait * SECOND
  else
    breaker.good = breaker.good + sent
  end
  return breaker.good >= GOOD
end

local function begin_step(auto, at)
  auto.since, auto.sent, auto.throttled, auto.micros = at, 0, 0, 0
end

local function cut(auto, wall)
  local half = math.max(LEAST_RATE, auto.rate / 2)
  if auto.rate <= auto.floor or wall <= auto.floor then  -- what held holds no more: by a little, or by far
    auto.floor = now - auto.cut < AGAIN * SECOND and half or 0.9 * math.min(auto.floor, wall)
  end
  auto.wall, auto.growth, auto.cut, auto.rate = wall, SLOW, now, half
  begin_step(auto, now)
end

local function climb(auto, ceiling)
  auto.floor = math.max(auto.floor, auto.rate)
  if auto.wall and auto.floor >= CLOSE * auto.wall and now - auto.cut >= math.max(QUIET, RARE / auto.rate) * SECOND then
    auto.wall = nil
  end
  if not auto.wall then
    auto.rate = auto.floor * auto.growth
    auto.growth = math.min(FAST, 1 + (auto.growth - 1) * 1.5)
  elseif auto.floor >= CLOSE * auto.wall then
    auto.rate = auto.floor
  else
    auto.rate = (auto.floor + auto.wall) / 2
  end
  if ceiling > 0 then auto.rate = math.min(auto.rate, ceiling) end
end

-- What held for long queues up now, or the upstream has become slower by itself: go down until either is told from the
-- other, and take what it is then for its usual latency.
local function ease(auto, mean)
  auto.wall, auto.growth, auto.cut = auto.rate, SLOW, now
  auto.floor = math.max(LEAST_RATE, 0.9 * auto.floor)
  auto.rate = auto.floor
  auto.base = auto.base + 0.2 * (mean - auto.base)
end

local function adapt(auto, rests_until, sent, throttled, micros, ceiling)
  if ceiling > 0 then auto.rate = math.min(auto.rate, ceiling) end
  auto.sent, auto.throttled, auto.micros = auto.sent + sent, auto.throttled + throttled, auto.micros + micros
  if throttled > 0 and now - auto.cut >= STEP * SECOND then
    return cut(auto, auto.rate * math.max(0.5, 1 - auto.throttled / math.max(auto.sent, SAMPLE)))
  end
  if now < rests_until then  -- neither a pause nor the rise after it shows what the upstream bears
    return begin_step(auto, rests_until)
  end
  auto.since = math.max(auto.since, rests_until)
  local exploring = auto.rate > auto.floor
  local slowly = exploring and (auto.wall or auto.growth < FAST)
  local elapsed = (now - auto.since) / SECOND
  if elapsed < (slowly and math.max(HOLD, 4 * QUICK / auto.rate) or math.max(STEP, QUICK / auto.rate)) then
    return
  end
  local mean = auto.micros / auto.sent
  auto.base = math.min(auto.base or mean, mean)
  if mean > 2 * auto.base + LATE and auto.rate >= auto.floor then
    if exploring then
      return cut(auto, auto.rate)
    end
    ease(auto, mean)
  elseif auto.sent >= 0.6 * auto.rate * elapsed then
    climb(auto, ceiling)
  end
  begin_step(auto, now)
end

for index = 4, #KEYS do
  local at = (index - 4) * 7
  local name = ARGV[at + 1]
  local sent, throttled, failed = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local packed = redis.call('HGET', KEYS[1], name)
  local record = packed and cmsgpack.unpack(packed) or {}
  local heard, changed = false, false
  if record.breaker then
    if record.breaker.probing then
      heard, changed = true, true
      if probed(record.breaker, sent, failed) then
        record.breaker = nil
        record.ends, record.ramp = math.max(record.ends or 0, now), RAMP * SECOND
        redis.call('DEL', KEYS[index])
      end
    end
  elseif is_down(index, sent, failed) then
    record.breaker = {at = now + SECOND, wait = 1, good = 0, probing = false}
    heard, changed = true, true
  end
  if ARGV[at + 6] == 'auto' and not record.breaker and sent > 0 then
    local auto = record.auto or {rate = FIRST_RATE, floor = 0, growth = FAST, cut = 0}
    if not record.auto then begin_step(auto, now) end
    record.auto, changed = auto, true
    adapt(auto, (record.ends or 0) + (record.ramp or 0), sent, throttled, tonumber(ARGV[at + 5]), tonumber(ARGV[at + 7]))
  end
  if changed then
    redis.call('HSET', KEYS[1], name, cmsgpack.pack(record))
  end
  if heard then
    local top = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
    redis.call('ZADD', KEYS[2], (top[2] or 0) + 1, name)
  end
end
for index = 1, 3 do
  redis.call('EXPIRE', KEYS[index], WEEK)
end
return #KEYS - 3
