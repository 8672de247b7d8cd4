"""What everything else uses of Redis: connections, names of keys, Lua scripts, and waiting while it is away."""
