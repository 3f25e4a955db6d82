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
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - GONE)
if #gone > 0 then
  redis.call('ZREM', KEYS[1], unpack(gone))
  redis.call('HDEL', KEYS[2], unpack(gone))
end
local stored = redis.call('GET', KEYS[3])
local shares = stored and cmsgpack.unpack(stored) or {begun = -EPOCH, last = {}, this = {}}
if now - shares.begun >= EPOCH then
  local names = redis.call('ZRANGE', KEYS[1], 0, -1)
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
return {shares.this, shares.last, redis.call('GET', KEYS[4]) or ''}
