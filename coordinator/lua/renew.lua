-- Purpose: a worker joins the run or says that it still lives; its lease is counted on Redis TIME.
-- KEYS[1] workers (zset: id -> end of lease, ms; negative: left by itself at that time)   KEYS[2] state (hash)
-- KEYS[3] waits (hash: worker -> what it waits for)
-- ARGV[1] worker   ARGV[2] lease, ms   ARGV[3] epoch   ARGV[4] "join" or "renew"   ARGV[5] what it waits for, or empty
-- Returns {"ok", rank from 0, living workers, run state, moves, turn} | {"lost"} the lease ended before this call | {"epoch"}
-- The prune comes first on purpose: it frees memory, so Redis lets the whole script pass when memory is
-- full (noeviction), and leases do not die exactly then.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[2])
local forgotten = now - 20 * lease
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, forgotten)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', -forgotten), '(0')
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[3] then
  return {'epoch'}
end
-- A complete run has no queue left to guard; whoever still works on it is told so, and leaves no trace.
local state = redis.call('HGET', KEYS[2], 'state')
if state == 'complete' then
  return {'ok', 0, 1, state, redis.call('HGET', KEYS[2], 'moves') or '0', 0}
end
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[4] == 'renew' and (not ends or tonumber(ends) <= now) then
  return {'lost'}
end
redis.call('ZADD', KEYS[1], now + lease, ARGV[1])
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[3], ARGV[1])
else
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[5])
end
local living = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
table.sort(living)
local rank = 0
for index, id in ipairs(living) do
  if id == ARGV[1] then rank = index - 1 end
end
return {'ok', rank, #living, state, redis.call('HGET', KEYS[2], 'moves') or '0', math.floor(now / 10000)}
