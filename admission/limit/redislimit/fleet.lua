-- One heartbeat of one replica: it says that it lives and how much it lets in, and
-- is told how the limits are to be shared if it should be left alone.
--
-- KEYS  1 members by their last heartbeat, 2 what each lets in, 3 the shares, 4 the
--       mark that says that the counters are whole
-- ARGV  1 time in ms (empty: the server's), 2 this replica, 3 what it lets in
--
-- The shares are fixed for an epoch, from what the members said until then, so that
-- all who were told of one epoch add up to one. An epoch is longer than two
-- heartbeats, so no member is more than one behind another; each is told of the
-- last two and takes the lesser share.
local EPOCH, GONE, FORGET = 25000, 35000, 3600000
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
try('HSET', KEYS[2], ARGV[2], ARGV[3])
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - GONE, 'LIMIT', 0, 1000)
if #gone > 0 then
  redis.call('ZREM', KEYS[1], unpack(gone))
  redis.call('HDEL', KEYS[2], unpack(gone))
end
-- Shares that cannot be read, or are of a time to come, are made anew.
local function read(stored)
  local ok, shares = pcall(cmsgpack.unpack, stored)
  if not ok or type(shares) ~= 'table' then return nil end
  local begun = shares.begun
  if type(begun) ~= 'number' or not (begun <= now + EPOCH) then return nil end
  for _, list in ipairs({shares.last or 0, shares.this or 0}) do
    if type(list) ~= 'table' then return nil end
    for _, one in ipairs(list) do
      if type(one) ~= 'string' then return nil end
    end
  end
  return shares
end
local stored = try('GET', KEYS[3])
local shares = stored and read(stored) or {begun = -EPOCH, last = {}, this = {}}
if now - shares.begun >= EPOCH then
  local names = redis.call('ZRANGE', KEYS[1], 0, 999)
  table.sort(names) -- of all epochs in one order
  shares.begun, shares.last, shares.this = now, shares.this, {}
  for _, member in ipairs(names) do
    table.insert(shares.this, member)
    table.insert(shares.this, redis.call('HGET', KEYS[2], member) or '0')
  end
  redis.call('SET', KEYS[3], cmsgpack.pack(shares), 'PX', FORGET)
end
redis.call('PEXPIRE', KEYS[1], FORGET)
redis.call('PEXPIRE', KEYS[2], FORGET)
return {shares.this, shares.last, try('GET', KEYS[4]) or ''}
