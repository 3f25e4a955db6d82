-- One heartbeat of one replica: it says that it lives, and is told how many do.
--
-- KEYS  1 members by their last heartbeat, 2 the name of these counters, 3 the mark
--       that says that their quotas are whole
-- ARGV  1 time in ms (empty: the server's), 2 this replica, 3 a name for the
--       counters if they have none: they are new then, or were lost
--
-- Each $NAME is a constant, whose number the store puts in (script.go).
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
-- try runs a command. What is of another type at its key is none of ours: it is
-- removed. Any other error is the server's.
local function try(command, key, ...)
  local out = redis.pcall(command, key, ...)
  if type(out) ~= 'table' or not out.err then return out end
  if string.find(out.err, 'WRONGTYPE', 1, true) then redis.call('DEL', key) end
  return redis.call(command, key, ...)
end
try('ZADD', KEYS[1], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - $MEMBERLIFE)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. now + $MEMBERLIFE, '+inf') -- of a clock that was ahead
redis.call('PEXPIRE', KEYS[1], $FLEETLIFE)
local name = try('GET', KEYS[2])
if not name then
  name = ARGV[3]
  redis.call('SET', KEYS[2], name)
end
return {redis.call('ZCARD', KEYS[1]), name, try('GET', KEYS[3]) or ''}
