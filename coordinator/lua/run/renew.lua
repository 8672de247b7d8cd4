-- Purpose: let a worker join the run, or prolong its lease; leases are counted on the clock of Redis. The worker that
-- completed the last keys so learns at once that the run is resolved. Nobody joins a cancelled run; who works on it learns
-- the state, and keeps its lease while it drains.
-- KEYS[1] workers (zset: id -> end of lease, ms; negative: left by itself at that time)   KEYS[2] state (hash)
-- KEYS[3] waits (hash: worker -> what it waits for)   KEYS[4] the worker's figures (string), which end with its lease
-- ARGV[1] worker   ARGV[2] lease, ms   ARGV[3] epoch   ARGV[4] "join" or "renew"   ARGV[5] what it waits for, or empty
-- ARGV[6] its figures, or empty
-- Returns {"ok", rank from 0, number of living workers, run state, moves, turn, 1 if the run has more workers than it may
--   have and this one leaves} | {"full"} it has as many as it may have, and nobody joins |
--   {"lost"} the lease ended before this call | {"epoch"} Redis has another run
-- Old leases are removed first on purpose: when Redis is full (noeviction), a script may still write if its first write
-- frees memory. So leases do not end while Redis is full.

local LEASES_UNTIL_FORGOTTEN = 20
local LONGEST_LEASE_MS = 200000
local TURN_MS = 10000
local workers_key = KEYS[1]
local state_key = KEYS[2]
local waits_key = KEYS[3]
local figures_key = KEYS[4]
local worker = ARGV[1]
local lease_ms = tonumber(ARGV[2])
local epoch = ARGV[3]
local verb = ARGV[4]
local waits_for = ARGV[5]
local figures = ARGV[6]
-- include: clock
-- include: epoch
-- include: lease
-- include: living_workers
-- include: resolve

local forgotten_ms = now_ms - LEASES_UNTIL_FORGOTTEN * lease_ms
redis.call('ZREMRANGEBYSCORE', workers_key, 0, forgotten_ms)
redis.call('ZREMRANGEBYSCORE', workers_key, '(' .. string.format('%.0f', -forgotten_ms), '(0')
-- Leases that end later than any of ours were written by another program: they would take a share of the budget.
redis.call('ZREMRANGEBYSCORE', workers_key, string.format('%.0f', now_ms + LONGEST_LEASE_MS), '+inf')
if is_other_run() then
  return {'epoch'}
end
-- A complete run has no queue: a worker that still works on it learns the state, and nothing is written.
local state = redis.call('HGET', state_key, 'state')
if not state then
  return {'epoch'}
end
if state == 'complete' or (state == 'cancelled' and verb == 'join') then
  return {'ok', 0, 1, state, redis.call('HGET', state_key, 'moves') or '0', 0, 0}
end
if verb == 'renew' and not is_alive(worker) then
  return {'lost'}
end

local most = tonumber(redis.call('HGET', state_key, 'max_workers') or '')
if most and verb == 'join' and not is_alive(worker) and #living_workers() >= most then
  return {'full'}
end

state = resolve()
redis.call('ZADD', workers_key, now_ms + lease_ms, worker)
if waits_for == '' then
  redis.call('HDEL', waits_key, worker)
else
  redis.call('HSET', waits_key, worker, waits_for)
end
if figures ~= '' then redis.call('SET', figures_key, figures, 'PX', lease_ms) end
local living = living_workers()
table.sort(living)
local rank = 0
for index, id in ipairs(living) do
  if id == worker then rank = index - 1 end
end
return {'ok', rank, #living, state, redis.call('HGET', state_key, 'moves') or '0', math.floor(now_ms / TURN_MS),
  most and rank >= most and 1 or 0}
