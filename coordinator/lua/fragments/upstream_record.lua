-- Needs: upstreams_key.
-- Defines: read_record(upstream) and write_record(upstream, record): what the fleet knows of one upstream, as msgpack;
--   FIRST_AUTO_RATE: requests a second of an "auto" rate before anything was found.
-- A record has these fields, each only when it is known; times are µs of Redis TIME where nothing else is said:
--   ends: when its last pause ends   rise: µs for which the rate rises after that
--   breaker, unless it is closed:
--     at: when the next probe may leave   wait: seconds from a failed probe to the next
--     good: probes in a row that succeeded   probing: whether a probe is under way
--   auto, the search for its rate (see auto_rate):
--     rate: requests a second now   floor: the highest rate that held   wall: about the rate that was too high, if any
--     growth: by what the rate is multiplied at the next step without a wall   cut: when it was last lowered
--     since: when this step began   sent, throttled: requests in this step   micros: µs that they took in all
--     base: the usual µs of a request
local FIRST_AUTO_RATE = 10
local function read_record(upstream)
  local packed = redis.call('HGET', upstreams_key, upstream)
  return packed and cmsgpack.unpack(packed) or {}
end
local function write_record(upstream, record)
  redis.call('HSET', upstreams_key, upstream, cmsgpack.pack(record))
end
