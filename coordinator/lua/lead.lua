-- Purpose: one planner leads; it keeps leading as long as it says so within its lease, and another may then take over.
-- KEYS[1] leader (string)
-- ARGV[1] planner   ARGV[2] lease, ms   ARGV[3] "lead" or "leave"
-- Returns 1 when this planner leads after the call, else 0
local leader = redis.call('GET', KEYS[1])
if ARGV[3] == 'leave' then
  if leader == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return 0
end
if leader and leader ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
