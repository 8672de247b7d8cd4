-- Defines: now_us and now_ms, the time of Redis; SECOND_US.
local SECOND_US = 1000000
local time = redis.call('TIME')
local now_us = time[1] * SECOND_US + time[2]
local now_ms = math.floor(now_us / 1000)
