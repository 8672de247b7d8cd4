-- Purpose: add keys of one outcome to the done set, from Postgres, when a run is rebuilt. A repeated call counts nothing
-- twice.
-- KEYS[1] state (hash)   KEYS[2..] done buckets
-- ARGV[1] epoch   ARGV[2] outcome
-- ARGV[3] msgpack: [number of members in each bucket, all members as text, bucket after bucket]
--   At most 4,000 members, because Lua's stack ends near 8,000.
-- Returns {"ok", keys newly done} | {"epoch"} Redis has another run

local state_key = KEYS[1]
local epoch = ARGV[1]
local outcome = ARGV[2]
-- include: epoch

if is_other_run() then
  return {'epoch'}
end
local counts, members = unpack(cmsgpack.unpack(ARGV[3]))
local first = 1
local newly_done = 0
for bucket, count in ipairs(counts) do
  newly_done = newly_done + redis.call('SADD', KEYS[1 + bucket], unpack(members, first, first + count - 1))
  first = first + count
end
if newly_done > 0 then redis.call('HINCRBY', state_key, outcome, newly_done) end
return {'ok', newly_done}
