-- Needs: workers_key, now_ms.
-- Defines: is_alive(id): whether the lease of a worker has not ended.
local function is_alive(id)
  local lease_end_ms = redis.call('ZSCORE', workers_key, id)
  return lease_end_ms and tonumber(lease_end_ms) > now_ms
end
