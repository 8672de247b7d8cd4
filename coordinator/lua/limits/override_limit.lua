-- Purpose: change the limit of one upstream for all workers while the run goes on.
-- KEYS[1] state (hash)   KEYS[2] limits (hash, see changes_since)
-- KEYS[3] changes (zset: upstream -> number of its last change)
-- KEYS[4] changed (stream: its last entry wakes the workers)
-- ARGV[1] upstream   ARGV[2..] pairs: "rate" or "concurrency", its value, or empty for the job's own
-- Returns 1, or 0 when the run is complete or this Redis does not know it

local state_key = KEYS[1]
local limits_key = KEYS[2]
local changes_key = KEYS[3]
local changed_key = KEYS[4]
local upstream = ARGV[1]
-- include: bump_change
-- include: keep_a_week

local state = redis.call('HGET', state_key, 'state')
if not state or state == 'complete' or state == 'cancelled' then
  return 0
end
for at = 2, #ARGV, 2 do
  local field = ARGV[at] .. ' ' .. upstream
  local value = ARGV[at + 1]
  if value == '' then
    redis.call('HDEL', limits_key, field)
  else
    redis.call('HSET', limits_key, field, value)
  end
end
bump_change(upstream)
keep_a_week(limits_key)
keep_a_week(changes_key)
return 1
