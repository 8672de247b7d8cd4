-- Needs: upstreams_key, now_us.
-- Defines: read_record(upstream) and write_record(upstream, record): what the fleet knows of one upstream, as msgpack;
--   FIRST_AUTO_RATE: requests a second of an "auto" rate before anything was found.
-- A record has these fields, each only when it is known; times are µs of Redis TIME where nothing else is said:
--   ends: when its last pause ends   rise: µs for which the rate rises after that
--   breaker, unless it is closed:
--     at: when the next probe may leave   wait: seconds from a failed probe to the next
--     good: probes in a row that succeeded   probing: whether a probe is under way
--     status, refused, most: when refusals opened it, their last status, how many came in a row, how many it took
--   auto, the search for its rate (see auto_rate):
--     rate: requests a second now   floor: the highest rate that held   wall: about the rate that was too high, if any
--     growth: by what the rate is multiplied at the next step without a wall   cut: when it was last lowered
--     since: when this step began   sent, throttled: requests in this step   micros: µs that they took in all
--     base: the usual µs of a request
-- A record that is not one of ours, like a pause of a century, is none: read_record returns an empty one.
local FIRST_AUTO_RATE = 10
local LONGEST_PAUSE_US = 21660000000 -- a minute more than workers ask for
local LONGEST_PROBE_WAIT_US = 61000000
local HIGHEST_RATE = 1e7
local function is_number(value, least, most)
  return type(value) == 'number' and value >= least and value <= most
end
local function is_breaker(breaker)
  return type(breaker) == 'table'
    and is_number(breaker.at, 0, now_us + LONGEST_PROBE_WAIT_US)
    and is_number(breaker.wait, 0, LONGEST_PROBE_WAIT_US)
    and is_number(breaker.good, 0, 1e9)
    and is_number(breaker.status or 0, 0, 999)
    and is_number(breaker.refused or 0, 0, 1e15)
end
local function is_auto(auto)
  return type(auto) == 'table'
    and is_number(auto.rate, 1e-9, HIGHEST_RATE)
    and is_number(auto.floor, 0, HIGHEST_RATE)
    and is_number(auto.wall or 0, 0, HIGHEST_RATE)
    and is_number(auto.growth, 1, 2)
    and is_number(auto.cut, 0, now_us)
    and is_number(auto.since, 0, now_us + LONGEST_PAUSE_US)
    and is_number(auto.sent, 0, 1e15)
    and is_number(auto.throttled, 0, 1e15)
    and is_number(auto.micros, 0, 1e18)
    and is_number(auto.base or 0, 0, 1e18)
end
local function is_record(record)
  return type(record) == 'table'
    and is_number(record.ends or 0, 0, now_us + LONGEST_PAUSE_US)
    and is_number(record.rise or 0, 0, LONGEST_PAUSE_US)
    and (not record.breaker or is_breaker(record.breaker))
    and (not record.auto or is_auto(record.auto))
end
local function read_record(upstream)
  local packed = redis.call('HGET', upstreams_key, upstream)
  if not packed then return {} end
  local unpacked, record = pcall(cmsgpack.unpack, packed)
  return unpacked and is_record(record) and record or {}
end
local function write_record(upstream, record)
  redis.call('HSET', upstreams_key, upstream, cmsgpack.pack(record))
end
