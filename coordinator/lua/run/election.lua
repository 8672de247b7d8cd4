-- Purpose: let one coordinator lead. It leads as long as it calls again within its lease; after that another may lead.
-- KEYS[1] leader (string)
-- ARGV[1] coordinator   ARGV[2] lease, ms   ARGV[3] "lead" or "leave"
-- Returns 1 when this coordinator leads after the call, else 0

local leader_key = KEYS[1]
local coordinator = ARGV[1]
local lease_ms = ARGV[2]
local verb = ARGV[3]
local LONGEST_LEASE_MS = 200000

local leader = redis.call('GET', leader_key)
-- A lease that never ends, or in a far future, was written by another program.
local left_ms = leader and redis.call('PTTL', leader_key)
if leader and (left_ms < 0 or left_ms > LONGEST_LEASE_MS) then leader = nil end
if verb == 'leave' then
  if leader == coordinator then redis.call('DEL', leader_key) end
  return 0
end
if leader and leader ~= coordinator then
  return 0
end
redis.call('SET', leader_key, coordinator, 'PX', lease_ms)
return 1
