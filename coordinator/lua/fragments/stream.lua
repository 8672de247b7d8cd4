-- Defines: GROUP, the consumer group of all workers;
--   create_stream(stream_key): with its group, unless it exists;
--   add_block(stream_key, payload): append one block;
--   remove_entry(stream_key, entry_id): ack and delete an entry; false when it was acked before.
local GROUP = 'workers'
local function create_stream(stream_key)
  if redis.call('EXISTS', stream_key) == 0 then
    redis.call('XGROUP', 'CREATE', stream_key, GROUP, '0', 'MKSTREAM')
  end
end
local function add_block(stream_key, payload)
  redis.call('XADD', stream_key, '*', 'b', payload)
end
local function remove_entry(stream_key, entry_id)
  if redis.call('XACK', stream_key, GROUP, entry_id) == 0 then
    return false
  end
  redis.call('XDEL', stream_key, entry_id)
  return true
end
