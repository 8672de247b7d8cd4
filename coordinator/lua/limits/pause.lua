-- Purpose: stop all requests to an upstream for a time; after it the rate rises. A pause can only become longer.
-- KEYS[1] upstreams (hash: upstream -> record, see fragments/upstream_record)
-- KEYS[2] changes (zset: upstream -> number of its last change)
-- KEYS[3] changed (stream: its last entry wakes the workers)
-- ARGV[1] upstream   ARGV[2] pause, µs from now
-- Returns {µs from now until the pause ends, µs for which the rate rises after it}

local LONGEST_RISE_US = 5000000
local upstreams_key = KEYS[1]
local changes_key = KEYS[2]
local changed_key = KEYS[3]
local upstream = ARGV[1]
local pause_us = tonumber(ARGV[2])
-- include: clock
-- include: upstream_record
-- include: bump_change
-- include: keep_a_week

local record = read_record(upstream)
local ends = now_us + pause_us
if ends > math.max(record.ends or 0, now_us) then
  record.ends = ends
  record.rise = math.min(LONGEST_RISE_US, ends - now_us)
  write_record(upstream, record)
  bump_change(upstream)
  keep_a_week(upstreams_key)
  keep_a_week(changes_key)
end
return {math.ceil((record.ends or now_us) - now_us), record.rise or 0}
