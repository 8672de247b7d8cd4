-- Purpose: change the live limit of one upstream in a run that goes on, for all of its workers.
-- KEYS[1] state (hash)   KEYS[2] limits (hash, see heed)   KEYS[3] changes (zset: upstream -> number of its last change)
-- ARGV[1] upstream   then pairs: "rate" or "concurrency", its value, or empty for the job's own
-- Returns 1, or 0 when the run is complete or not known here
local WEEK = 604800
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'complete' then
  return 0
end
for index = 2, #ARGV, 2 do
  local field = ARGV[index] .. ' ' .. ARGV[1]
  if ARGV[index + 1] == '' then
    redis.call('HDEL', KEYS[2], field)
  else
    redis.call('HSET', KEYS[2], field, ARGV[index + 1])
  end
end
local top = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')
redis.call('ZADD', KEYS[3], (top[2] or 0) + 1, ARGV[1])
redis.call('EXPIRE', KEYS[2], WEEK)
redis.call('EXPIRE', KEYS[3], WEEK)
return 1
