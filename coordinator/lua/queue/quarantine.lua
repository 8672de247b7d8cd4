-- Purpose: move an entry that is not a block of ours to the quarantine, so that the shard goes on.
-- KEYS[1] stream of the shard   KEYS[2] quarantine (list)
-- ARGV[1] entry id   ARGV[2] the beginning of its payload   ARGV[3] most entries that are kept
-- Returns 1, or 0 when the entry was acknowledged before, also by this same call

local stream_key = KEYS[1]
local quarantine_key = KEYS[2]
local entry_id = ARGV[1]
local payload = ARGV[2]
local most_kept = tonumber(ARGV[3])
-- include: stream

if not remove_entry(stream_key, entry_id) then
  return 0
end
redis.call('RPUSH', quarantine_key, payload)
redis.call('LTRIM', quarantine_key, -most_kept, -1)
return 1
