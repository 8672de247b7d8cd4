-- Needs: state_key.
-- Defines: resolve(): call the run resolved when every key has its outcome (counts decide, never an empty stream), and
--   return its state: "running", "resolved" or "complete"; nil when there is none.
local function resolve()
  local state, exhausted, published, resolved =
    unpack(redis.call('HMGET', state_key, 'state', 'exhausted', 'published', 'resolved'))
  if state == 'running' and exhausted == '1' and (published or '0') == (resolved or '0') then
    redis.call('HSET', state_key, 'state', 'resolved')
    return 'resolved'
  end
  return state
end
