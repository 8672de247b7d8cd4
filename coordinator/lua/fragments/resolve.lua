-- Needs: state_key.
-- Defines: resolve(): call the run resolved when every key has its outcome (counts decide, never an empty stream), and
--   return its state: "running", "resolved", "complete" or "cancelled"; nil when there is none. Keys that pages have named are
--   pending until they are published.
local function resolve()
  local state, exhausted, published, resolved, pending =
    unpack(redis.call('HMGET', state_key, 'state', 'exhausted', 'published', 'resolved', 'pending'))
  if state == 'running' and exhausted == '1' and (published or '0') == (resolved or '0') and (pending or '0') == '0' then
    redis.call('HSET', state_key, 'state', 'resolved')
    return 'resolved'
  end
  return state
end
