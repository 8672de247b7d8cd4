"""The door to Redis: connections, key names, Lua scripts, and waiting while it is away."""
