-- Needs: workers_key, now_ms.
-- Defines: living_workers(): the ids of all workers whose lease has not ended.
local function living_workers()
  return redis.call('ZRANGEBYSCORE', workers_key, '(' .. string.format('%.0f', now_ms), '+inf')
end
