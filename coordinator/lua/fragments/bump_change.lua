-- Needs: changes_key, changed_key.
-- Defines: bump_change(upstream): give it the next number of a change, and wake every worker, which then reads it (see
--   changes_since, which also deletes numbers that cannot be counted on).
local CHANGED_KEPT_SECONDS = 604800
local function bump_change(upstream)
  local last = redis.call('ZREVRANGE', changes_key, 0, 0, 'WITHSCORES')
  redis.call('ZADD', changes_key, (last[2] or 0) + 1, upstream)
  redis.call('XADD', changed_key, 'MAXLEN', 1, '*', 'upstream', upstream)
  redis.call('EXPIRE', changed_key, CHANGED_KEPT_SECONDS)
end
