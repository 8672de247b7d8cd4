-- Needs: upstreams_key.
-- Defines: read_record(upstream) and write_record(upstream, record): what the fleet knows of one upstream, as msgpack;
--   FIRST_AUTO_RATE: requests a second of an "auto" rate before anything was found.
-- A record has these fields, each only when it is known; all times are µs:
--   ends, ramp: when its last pause ends, and how long the rate rises after it
--   breaker: unless it is closed; at (next probe), wait (seconds between probes), good (probes in a row), probing
--   auto: the search for its rate; rate, floor, wall, growth, since, cut, sent, throttled, micros, base (see auto_rate)
local FIRST_AUTO_RATE = 10
local function read_record(upstream)
  local packed = redis.call('HGET', upstreams_key, upstream)
  return packed and cmsgpack.unpack(packed) or {}
end
local function write_record(upstream, record)
  redis.call('HSET', upstreams_key, upstream, cmsgpack.pack(record))
end
