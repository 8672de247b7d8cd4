-- Needs: changes_key.
-- Defines: bump_change(upstream): give it the next number of a change, so that every worker reads it (see
--   changes_since, which also deletes numbers that cannot be counted on).
local function bump_change(upstream)
  local last = redis.call('ZREVRANGE', changes_key, 0, 0, 'WITHSCORES')
  redis.call('ZADD', changes_key, (last[2] or 0) + 1, upstream)
end
