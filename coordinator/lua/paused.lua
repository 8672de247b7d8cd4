-- Purpose: which upstreams are paused now?
-- KEYS[1] pauses (hash: upstream -> end of pause, µs)
-- Returns upstream, µs until its pause ends, upstream, …
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answer = {}
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local left = tonumber(all[index + 1]) - now
  if left > 0 then
    answer[#answer + 1] = all[index]
    answer[#answer + 1] = math.ceil(left)
  end
end
return answer
