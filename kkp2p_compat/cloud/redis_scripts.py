"""What Redis does in one step, in Lua.

Keys that a script makes of others begin with the prefix, which is an argument: the directory is one
Redis, or a primary and its replicas, and no Redis Cluster.

``GET`` by pcall: a key of another type, which is not ours, counts as missing.
"""

from __future__ import annotations

from .redis_link import Script

__all__ = [
    "ADD_ACCOUNT",
    "ADD_USAGE",
    "CAME",
    "CHANGE_ACCOUNT",
    "CLEAR",
    "LEFT",
    "NODES",
    "REMOVE_ACCOUNT",
    "WHERE",
]

# Where a peer is: "NODE CONNECTION SINCE SESSION", as redis_records.py writes and reads it.
_PRESENCE = """
local function parse(value)
    local node, connection, since, session =
        string.match(value, '^([0-9a-f]+) ([0-9]+) ([0-9]+) (.*)$')
    if node and #node == 16 and #connection < 20 and #since < 20 and #session <= 256 then
        return node, tonumber(since), session
    end
end
local function there(key)
    local value = redis.pcall('GET', key)
    if type(value) == 'string' and parse(value) then return value end
end
local function is_alive(prefix, node)
    return redis.call('EXISTS', prefix .. 'node:' .. node) == 1
end
"""

# KEYS: peer:ID, peers:NODE.  ARGV: the prefix, the id, the presence, and what it is: new, again or
# restored.  Gives 1 and whose place it was, or 0 and whose it stays.
CAME = Script(
    _PRESENCE
    + """
local old = there(KEYS[1])
local node, since, session = parse(ARGV[3])
local old_node, old_since, old_session
if old then old_node, old_since, old_session = parse(old) end
if old and ARGV[4] ~= 'new' and is_alive(ARGV[1], old_node) then
    if ARGV[4] == 'again' and old_session ~= session then return {0, old} end
    if ARGV[4] == 'restored' and old_since > since then return {0, old} end
end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('SADD', KEYS[2], ARGV[2])
if not old then return {1, false} end
if old_node ~= node then redis.call('SREM', ARGV[1] .. 'peers:' .. old_node, ARGV[2]) end
return {1, old}
"""
)

# KEYS: peer:ID, peers:NODE.  ARGV: the id, and how its presence begins.
LEFT = Script(
    _PRESENCE
    + """
local value = there(KEYS[1])
local is_ours = value and string.sub(value .. ' ', 1, #ARGV[2] + 1) == ARGV[2] .. ' '
if is_ours then redis.call('DEL', KEYS[1]) end
if is_ours or not value or string.sub(value, 1, 16) ~= string.sub(ARGV[2], 1, 16) then
    redis.call('SREM', KEYS[2], ARGV[1])
end
return 1
"""
)

# KEYS: peer:ID.  ARGV: the prefix.
WHERE = Script(
    _PRESENCE
    + """
local value = there(KEYS[1])
if value and is_alive(ARGV[1], (parse(value))) then return value end
return false
"""
)

# KEYS: nodes.  ARGV: the prefix.  Gives what those say of themselves that live, and the ids of
# those that are gone.
NODES = Script(
    """
local living, gone = {}, {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local node = redis.pcall('GETRANGE', ARGV[1] .. 'node:' .. id, 0, 8192)
    if type(node) ~= 'string' or node == '' then
        table.insert(gone, id)
    else
        table.insert(living, node)
    end
end
return {living, gone}
"""
)

# KEYS: node:ID, nodes, peers:ID.  ARGV: the prefix, the node's id, how many peers at most.
# Gives 1 if there may be more, 0 at the end, and if the node lives after all.
CLEAR = Script(
    _PRESENCE
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local peers = redis.pcall('SPOP', KEYS[3], ARGV[3])
for _, id in ipairs(peers) do
    local key = ARGV[1] .. 'peer:' .. id
    local value = there(key)
    if value and string.sub(value, 1, 16) == ARGV[2] then redis.call('DEL', key) end
end
if #peers > 0 then return 1 end
redis.call('SREM', KEYS[2], ARGV[2])
return 0
"""
)

# KEYS of these: account:ID, accounts, the channel that tells, changes.  ARGV: the id, what is to be
# remembered of the change (if anything), of how many changes, and fields and values; a change has
# the stored_key that the account must have before them, empty if it may have any.
_TELL = """
redis.call('PUBLISH', KEYS[3], ARGV[1])
if ARGV[2] ~= '' then
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], '*', 'record', ARGV[2])
end
return 1
"""

ADD_ACCOUNT = Script(
    """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], 0, ARGV[1])
"""
    + _TELL
)

CHANGE_ACCOUNT = Script(
    """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[4] ~= '' and redis.call('HGET', KEYS[1], 'stored_key') ~= ARGV[4] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
"""
    + _TELL
)

REMOVE_ACCOUNT = Script(
    """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
"""
    + _TELL
)

# KEYS: usage:DAY:WHO of many.  ARGV: how many seconds they are kept, and for each of them the
# number of its counts, and their names and what is added.  By pcall: a key of another type, which
# is not ours, costs only its own counts, and so does what is no number.  Whatever else is refused,
# is so before anything was added: Redis refuses no script that has written.
ADD_USAGE = Script(
    """
local at = 2
for _, key in ipairs(KEYS) do
    local after = at + 1 + 2 * tonumber(ARGV[at])
    for name = at + 1, after - 1, 2 do
        local added = redis.pcall('HINCRBY', key, ARGV[name], ARGV[name + 1])
        local refusal = type(added) == 'table' and added.err
        if refusal and not string.find(refusal, '^WRONGTYPE') and not string.find(refusal, '^ERR')
        then return added end
    end
    redis.call('EXPIRE', key, ARGV[1])
    at = after
end
return 1
"""
)
