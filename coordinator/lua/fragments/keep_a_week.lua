-- Defines: keep_a_week(any_key): let it live for a week from now.
local WEEK_SECONDS = 604800
local function keep_a_week(any_key)
  redis.call('EXPIRE', any_key, WEEK_SECONDS)
end
