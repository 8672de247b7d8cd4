-- Purpose: which of these keys are done?
-- KEYS done buckets
-- ARGV for each bucket: number of members, then the members
-- Returns a string of "0" and "1", one for each member in order
local at = 1
local found = {}
for _, bucket in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  for _, hit in ipairs(redis.call('SMISMEMBER', bucket, unpack(ARGV, at + 1, at + count))) do
    found[#found + 1] = hit
  end
  at = at + count + 1
end
return table.concat(found)
