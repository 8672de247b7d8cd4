-- Needs: ready_key.
-- It calls what the fragment `stream` defines, which stands before it.
-- Defines: append_blocks(keys, first_stream, arguments, at): append blocks to the streams keys[first_stream] and behind;
--   arguments[at] and behind are for each stream: shard, number of blocks, then for each block: keys in it, payload.
--   Returns how many keys the blocks have.
local function append_blocks(keys, first_stream, arguments, at)
  local keys_in_blocks = 0
  for stream = first_stream, #keys do
    local stream_key = keys[stream]
    local shard = arguments[at]
    local block_count = tonumber(arguments[at + 1])
    at = at + 2
    create_stream(stream_key)
    for _ = 1, block_count do
      keys_in_blocks = keys_in_blocks + tonumber(arguments[at])
      add_block(stream_key, arguments[at + 1])
      at = at + 2
    end
    redis.call('ZINCRBY', ready_key, block_count, shard)
  end
  return keys_in_blocks
end
