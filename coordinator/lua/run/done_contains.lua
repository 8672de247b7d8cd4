-- Purpose: tell which keys are done.
-- KEYS done buckets
-- ARGV[1] msgpack: [number of members in each bucket, all members as text, bucket after bucket]
--   At most 4,000 members, because Lua's stack ends near 8,000.
-- Returns a string of "0" and "1", one for each member in order

local counts, members = unpack(cmsgpack.unpack(ARGV[1]))
local found = {}
local first = 1
for bucket, count in ipairs(counts) do
  if count == 1 then -- in a large layout that is most of them
    found[bucket] = redis.call('SISMEMBER', KEYS[bucket], members[first])
  else
    found[bucket] = table.concat(redis.call('SMISMEMBER', KEYS[bucket], unpack(members, first, first + count - 1)))
  end
  first = first + count
end
return table.concat(found)
