-- Needs: state_key, epoch.
-- Defines: is_other_run(): whether Redis holds another run than the one that the caller joined.
local function is_other_run()
  return redis.call('HGET', state_key, 'epoch') ~= epoch
end
