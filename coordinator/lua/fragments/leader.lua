-- Needs: leader_key, coordinator.
-- Defines: is_leader(): whether the calling coordinator is the one that leads the run.
local function is_leader()
  return redis.call('GET', leader_key) == coordinator
end
