-- One call of the store: all counters of one home are read, judged and written
-- together. The arithmetic is that of limit.Memory (window.go, lease.go, quota.go),
-- in integers below 2^53, which a double holds exactly; the names are the same.
--
-- KEYS   1 reservation, 2 clock, 3 index of reservations by their end, 4... counters
-- ARGV   1 operation, 2 time in ms (empty: the server's), 3 id, 4 dimensions,
--        5 of settle and renew the charges (empty: not known), of reserve "1" to be
--        given what a cancel needs, of cancel what it was given
--        6 of settle "1" where an unknown id is charged
--        7... of cancel the rest
--
-- Lists of numbers travel and lie in counters as doubles, little end first: one
-- string is read by one call, where a field each would take hundreds.

local floor, ceil, max, min, huge = math.floor, math.ceil, math.max, math.min, math.huge
local call = redis.call

-- $NAMES are constants; the store puts their numbers in. As locals each would have
-- to be searched for by every function that uses it, in every call: that alone took
-- longer than the rest of a decision.
-- Fields of a dimension:
--   $KIND=1 $SOFT=2 $LIMIT=3 $COST=4 $FLOOR=5 $WINDOW=6 $BUCKET=7 $BURST=8 $EDGE=9
--   $NEXTLIMIT=10 $NEXTBURST=11 $BEGIN=12 $END=13 $FIELDS=13
-- Kinds: $LEASE=2 $QUOTA=3
-- Of a window's counter; pairs of newest charge and sum follow:
--   $FORGET=1 $DEBT=2 $DEBTAT=3 $DEBTWINDOW=4 $RATE=5 $FIRST=6
-- Of a quota's: $QBEGIN=1 $QEND=2 $USED=3
-- Of a part of a reservation: $CHARGED=1 $PFLOOR=2 $AT=3 $PDEBT=4 $SKIPPED=5 $PARTS=5
-- States of a reservation: $LIVE=0 $REAPED=1 $SETTLED=2
-- Times in ms, as in package limit:
--   $LEASELIFE=30000 $SETTLEDLIFE=60000 $REAPEDLIFE=900000 $SKEW=60000
-- and our own; by $SLACK keys outlive their use, so that no expiry decides anything:
--   $HOUR=3600000 $MONTH=2764800000 $SLACK=60000

local operation, id, raw = ARGV[1], ARGV[3], ARGV[4]
local recordkey, clockkey, duekey = KEYS[1], KEYS[2], KEYS[3]
local n = #KEYS - 3

local function numbers(text)
  local list = {struct.unpack('<' .. string.rep('d', #text / 8), text)}
  list[#list] = nil -- unpack ends with a position
  return list
end

local function packed(list) return struct.pack('<' .. string.rep('d', #list), unpack(list)) end

local function int(x) return string.format('%.0f', x) end

local D = numbers(raw)
local S = {} -- states, seven numbers for each dimension
local cells, before, dirty = {}, {}, {}
local now, behind -- behind: by how much the clock was behind

----------------------------------------------------------------- windows

local function drain(debt, rate, elapsed)
  if debt == 0 or elapsed <= 0 then return debt end
  if elapsed > floor(debt / rate) then return 0 end
  return debt - rate * elapsed
end

local function owed(c, at) return drain(c[$DEBT], c[$RATE], at - c[$DEBTAT]) end

local function inforce(d, at)
  local edge = D[d + $EDGE]
  if edge ~= 0 and at >= edge then return D[d + $NEXTLIMIT], D[d + $NEXTBURST] end
  return D[d + $LIMIT], D[d + $BURST]
end

local function used(c, at, length)
  local sum, i = 0, #c - 1
  while i >= $FIRST and c[i] > at - length do
    sum, i = sum + c[i + 1], i - 2
  end
  return sum
end

local function roomat(c, at, length, sum)
  if sum < 0 then return huge end
  local left = used(c, at, length)
  for i = $FIRST, #c, 2 do
    if left <= sum then return at end
    if c[i] > at - length then
      left = left - c[i + 1]
      if left <= sum then return c[i] + length end
    end
  end
  return at
end

local function fitsat(d, c, limit, burst, at)
  local cost = D[d + $COST]
  local when = roomat(c, at, D[d + $WINDOW], limit - cost)
  if burst == 0 or when == huge then return when end
  if cost > burst then return huge end
  local over = owed(c, at) - (burst - cost) * c[$DEBTWINDOW]
  if over > 0 then when = max(when, at + ceil(over / c[$RATE])) end
  return when
end

local function passesat(d, c)
  local limit, burst = inforce(d, now)
  local at, edge = fitsat(d, c, limit, burst, now), D[d + $EDGE]
  if edge <= now or at < edge then return at end
  return fitsat(d, c, D[d + $NEXTLIMIT], D[d + $NEXTBURST], edge)
end

local function checkwindow(d, c, o, cost)
  local limit, burst = inforce(d, now)
  local length = D[d + $WINDOW]
  local sum, reset = used(c, now, length), 0
  local remaining = limit - sum
  for i = #c - 1, $FIRST, -2 do
    if c[i + 1] > 0 then
      reset = max(c[i] + length - now, 0)
      break
    end
  end
  if burst > 0 then
    remaining = min(remaining, burst)
    local debt = owed(c, now)
    if debt > 0 then
      remaining = min(remaining, burst - ceil(debt / c[$DEBTWINDOW]))
      reset = max(reset, ceil(debt / c[$RATE]))
    end
  end
  S[o + 1], S[o + 2], S[o + 3], S[o + 4], S[o + 5], S[o + 6], S[o + 7] = limit, sum, max(remaining, 0), reset, 0, 0, 0
  if cost == 0 then return end
  local at = passesat(d, c)
  if at == huge then
    S[o + 5], S[o + 6] = 1, 1
  elseif at > now then
    S[o + 5], S[o + 7] = 1, at - now
  end
end

local function add(d, c, amount)
  local length, dead, size = D[d + $WINDOW], $FIRST, #c
  while dead <= size and c[dead] <= now - length do dead = dead + 2 end
  if dead > $FIRST then
    for i = dead, size do c[i - dead + $FIRST] = c[i] end
    for i = size, size - dead + $FIRST + 1, -1 do c[i] = nil end
  end
  local last, bucket = #c - 1, D[d + $BUCKET]
  if last >= $FIRST and floor(c[last] / bucket) >= floor(now / bucket) then
    c[last], c[last + 1] = max(c[last], now), c[last + 1] + amount
  else
    c[last + 2], c[last + 3] = now, amount
  end
end

local function owe(d, c, change)
  local limit, burst = inforce(d, now)
  if burst == 0 then return end
  local debt, length = owed(c, now), D[d + $WINDOW]
  if debt == 0 then
    c[$DEBTWINDOW], c[$RATE] = length, limit
  elseif c[$DEBTWINDOW] ~= length then
    local whole = floor(math.abs(change) / length) * c[$DEBTWINDOW]
    change = change < 0 and -whole or whole
  end
  c[$DEBT], c[$DEBTAT] = min(max(debt + change, 0), 9007199254740991), now
end

local function bucketof(d, c, at)
  for i = $FIRST, #c, 2 do
    if c[i] >= at then
      local bucket = D[d + $BUCKET]
      if c[i] > now - D[d + $WINDOW] and floor(c[i] / bucket) == floor(at / bucket) then return i end
      return nil
    end
  end
end

local function adjustwindow(d, c, at, debt, delta)
  local i, length = bucketof(d, c, at), D[d + $WINDOW]
  if not i and delta < 0 then return end
  if not i then
    owe(d, c, delta * length)
    add(d, c, delta)
    return
  end
  c[i + 1] = max(c[i + 1] + delta, 0)
  local change = delta * length
  if delta < 0 then change = -min(-change, drain(debt, c[$RATE], now - at)) end
  owe(d, c, change)
end

local function touch(d, c)
  c[$FORGET] = max(c[$FORGET], now + D[d + $WINDOW])
  local debt = owed(c, now)
  if debt > 0 then c[$FORGET] = max(c[$FORGET], now + ceil(debt / c[$RATE])) end
end

------------------------------------------------------------------ quotas

local function checkquota(d, c, o, cost)
  local begin, ends, sum = c[$QBEGIN], c[$QEND], c[$USED]
  if begin < D[d + $BEGIN] then sum, ends = 0, D[d + $END] end
  if now >= ends + $SKEW then sum = 0 end
  local limit = D[d + $LIMIT]
  S[o + 1], S[o + 2], S[o + 3], S[o + 4], S[o + 5], S[o + 6], S[o + 7] = limit, sum, max(limit - sum, 0), max(ends - now, 0), 0, 0, 0
  if cost > 0 and sum + cost > limit then
    S[o + 5] = 1
    if cost > limit then S[o + 6] = 1 else S[o + 7] = max(ends - now, 1) end
  end
end

local function enter(d, c)
  if c[$QBEGIN] < D[d + $BEGIN] then c[$QBEGIN], c[$QEND], c[$USED] = D[d + $BEGIN], D[d + $END], 0 end
end

------------------------------------------------------------------ leases

-- held counts the leases that have not ended at a time.
local function held(key, at) return call('ZCOUNT', key, '(' .. int(at), '+inf') end

-- endsat is when the i-th of them has ended.
local function endsat(key, at, i)
  local found = call('ZRANGEBYSCORE', key, '(' .. int(at), '+inf', 'WITHSCORES', 'LIMIT', i - 1, 1)
  return found[2] and tonumber(found[2]) or huge
end

local function checklease(d, key, o, cost)
  local limit = inforce(d, now)
  local count, reset = held(key, now), 0
  if count > 0 then reset = tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]) - now end
  S[o + 1], S[o + 2], S[o + 3], S[o + 4], S[o + 5], S[o + 6], S[o + 7] = limit, count, max(limit - count, 0), reset, 0, 0, 0
  if cost == 0 or count + cost <= limit then return end
  S[o + 5] = 1
  local at, edge = endsat(key, now, count - (limit - cost)), D[d + $EDGE]
  if edge > now and at >= edge then
    local over = held(key, edge) - (D[d + $NEXTLIMIT] - cost)
    at = edge
    if over > 0 then at = endsat(key, edge, over) end
  end
  if at == huge then S[o + 6] = 1 else S[o + 7] = at - now end
end

-------------------------------------------------------------- all of them

local function empty(kind)
  if kind == $QUOTA then return {0, 0, 0} end
  return {0, 0, 0, 0, 0}
end

-- check puts into S what a dimension would find, and changes nothing.
local function check(i, cost)
  local d, o = (i - 1) * $FIELDS, (i - 1) * 7
  local kind = D[d + $KIND]
  if kind == $LEASE then return checklease(d, KEYS[i + 3], o, cost) end
  local c = cells[i] or empty(kind)
  if kind == $QUOTA then return checkquota(d, c, o, cost) end
  return checkwindow(d, c, o, cost)
end

local function open(i, kind)
  dirty[i] = true
  if not cells[i] then cells[i] = empty(kind) end
  return cells[i]
end

-- charge takes a dimension's cost and writes its part of the reservation.
local function charge(i, P, ends)
  local d, p, key = (i - 1) * $FIELDS, (i - 1) * $PARTS, KEYS[i + 3]
  local kind, cost = D[d + $KIND], D[d + $COST]
  P[p + $CHARGED], P[p + $PFLOOR], P[p + $AT], P[p + $PDEBT], P[p + $SKIPPED] = cost, D[d + $FLOOR], now, 0, 0
  if kind == $LEASE then
    P[p + $PFLOOR] = 0
    call('ZREMRANGEBYSCORE', key, '-inf', int(now))
    if cost > 0 then
      call('ZADD', key, int(ends), id)
      call('PEXPIRE', key, $LEASELIFE + $SLACK + behind)
    end
    return
  end
  local c = open(i, kind)
  if kind == $QUOTA then
    enter(d, c)
    c[$USED], P[p + $AT] = c[$USED] + cost, c[$QBEGIN]
    return
  end
  local limit, burst = inforce(d, now)
  local length = D[d + $WINDOW]
  if burst > 0 then
    local debt = owed(c, now)
    if debt ~= 0 and c[$DEBTWINDOW] ~= length then debt = ceil(debt / c[$DEBTWINDOW]) * length end
    c[$DEBT], c[$DEBTAT], c[$DEBTWINDOW], c[$RATE] = debt, now, length, limit
    owe(d, c, cost * length)
  end
  add(d, c, cost)
  touch(d, c)
  P[p + $PDEBT] = c[$DEBT]
end

-- adjust brings one charge of a reservation to what it is to be.
local function adjust(i, P, target)
  local d, p = (i - 1) * $FIELDS, (i - 1) * $PARTS
  local kind, delta = D[d + $KIND], target - P[p + $CHARGED]
  P[p + $CHARGED] = target
  if delta == 0 or kind == $LEASE or not cells[i] and delta < 0 then return end
  local c = open(i, kind)
  if kind == $QUOTA then
    enter(d, c)
    if P[p + $AT] == c[$QBEGIN] or delta > 0 then c[$USED] = max(c[$USED] + delta, 0) end
    return
  end
  adjustwindow(d, c, P[p + $AT], P[p + $PDEBT], delta)
  touch(d, c)
end

-- finish brings all charges to what they are to be and ends the leases.
local function finish(P, target)
  for i = 1, n do
    if P[(i - 1) * $PARTS + $SKIPPED] == 0 then
      adjust(i, P, target(i))
      if D[(i - 1) * $FIELDS + $KIND] == $LEASE then call('ZREM', KEYS[i + 3], id) end
    end
  end
  call('ZREM', duekey, id)
end

-- write puts back what was changed. The clock goes with it: it is held against
-- going back over all that was written.
local function write()
  for i = 1, n do
    local c = dirty[i] and cells[i]
    if c then
      local ends = D[(i - 1) * $FIELDS + $KIND] == $QUOTA and c[$QEND] + $SKEW or c[$FORGET]
      call('SET', KEYS[i + 3], packed(c), 'PX', int(max(ends - now, 0) + $SLACK + behind))
    end
  end
  call('SET', clockkey, int(now), 'PX', 2 * $HOUR)
end

-- A record is three numbers (state, end, dimensions), the parts, and then for the
-- reaper, who knows nothing else, the dimensions and their keys.
local function record(state, ends, P, tail, life)
  call('SET', recordkey, packed({state, ends, #P / $PARTS}) .. packed(P) .. tail, 'PX', int(life + $SLACK + behind))
end

local function remember(P, ends)
  -- A reservation lives until it is reaped. Who reserves nothing of a quota has
  -- nothing to give back once its windows are over.
  local life = 2 * $HOUR
  for i = 1, n do
    if D[(i - 1) * $FIELDS + $KIND] == $QUOTA then life = $MONTH end
  end
  record($LIVE, ends, P, raw .. table.concat(KEYS, '\0', 4), life)
  call('ZADD', duekey, int(ends), id)
  call('PEXPIRE', duekey, $MONTH)
end

local function answer(verdict)
  for i = n * 7, 1, -1 do S[i + 1] = S[i] end
  S[1] = verdict
  return packed(S)
end

local function states()
  for i = 1, n do check(i, 0) end
end

------------------------------------------------------------------- begin

local values = call('MGET', unpack(KEYS))
for i = 1, n do
  before[i] = values[i + 3]
  if before[i] then cells[i] = numbers(before[i]) end
end
now = tonumber(ARGV[2])
if not now then
  local time = call('TIME')
  now = time[1] * 1000 + floor(time[2] / 1000)
end
behind = 0
local latest = tonumber(values[2] or 0)
if latest > now and latest <= now + $HOUR then behind, now = latest - now, latest end
-- A clock that was further ahead was wrong, and so is what it has charged: it would
-- count for as long as that.
for i = 1, n do
  local c = cells[i]
  if c and D[(i - 1) * $FIELDS + $KIND] ~= $QUOTA and #c >= $FIRST and c[#c - 1] > now + $HOUR then cells[i] = nil end
end

-- The record, where it is still to be known.
local state, ends, P
if values[1] then
  local head = numbers(string.sub(values[1], 1, 24))
  if head[1] == $LIVE or head[2] > now then
    state, ends = head[1], head[2]
    local last = 24 + head[3] * $PARTS * 8
    P = numbers(string.sub(values[1], 25, last))
  end
end

if operation == 'peek' or operation == 'reserve' then
  if operation == 'reserve' and state then
    states()
    return answer(2)
  end
  local allowed = 1
  for i = 1, n do
    local d = (i - 1) * $FIELDS
    check(i, D[d + $COST])
    if S[(i - 1) * 7 + 5] == 1 and D[d + $SOFT] == 0 then allowed = 0 end
  end
  if operation == 'peek' or allowed == 0 then return answer(allowed) end
  P, ends = {}, now + $LEASELIFE
  for i = 1, n do
    if S[(i - 1) * 7 + 5] == 1 then -- soft
      local p = (i - 1) * $PARTS
      P[p + 1], P[p + 2], P[p + 3], P[p + 4], P[p + 5] = 0, 0, 0, 0, 1
    else
      charge(i, P, ends)
      check(i, 0)
    end
  end
  write()
  remember(P, ends)
  if ARGV[5] ~= '1' then return answer(1) end
  local out = {answer(1)}
  for i = 1, n do
    out[#out + 1] = before[i] or ''
    out[#out + 1] = dirty[i] and packed(cells[i]) or ''
  end
  return out
end

if operation == 'settle' then
  if not state and ARGV[6] == '1' then
    state, P = $LIVE, {}
    for p = 0, (n - 1) * $PARTS, $PARTS do
      P[p + 1], P[p + 2], P[p + 3], P[p + 4], P[p + 5] = 0, 0, -1, 0, 0
    end
  elseif not state or state == $SETTLED then
    states()
    return answer(0)
  elseif #P ~= n * $PARTS then
    return packed({-1})
  end
  local charges = numbers(ARGV[5])
  finish(P, function(i) return max(charges[i], 0) end)
  write()
  -- Who settles what was never reserved may be repeating itself much later.
  local life = ARGV[6] == '1' and 24 * $HOUR or $SETTLEDLIFE
  record($SETTLED, now + life, {}, '', life)
  states()
  return answer(1)
end

-- A refusal elsewhere takes back what was reserved here, as if it had never been:
-- where nobody else has charged since, the counter is what it was.
if operation == 'cancel' then
  if state ~= $LIVE or #P ~= n * $PARTS then return 0 end
  local restore = {}
  for i = 1, n do
    local was, is = ARGV[2 * i + 3], ARGV[2 * i + 4]
    if is ~= '' and is == before[i] then restore[i] = was end
  end
  finish(P, function(i) return restore[i] and P[(i - 1) * $PARTS + $CHARGED] or 0 end)
  write()
  for i, was in pairs(restore) do
    if was == '' then call('DEL', KEYS[i + 3]) else call('SET', KEYS[i + 3], was, 'KEEPTTL') end
  end
  call('DEL', recordkey)
  return 1
end

if operation == 'renew' then
  if state ~= $LIVE or ends <= now or #P ~= n * $PARTS then return 0 end
  local charges = numbers(ARGV[5])
  ends = now + $LEASELIFE
  for i = 1, n do
    local p, key = (i - 1) * $PARTS, KEYS[i + 3]
    if P[p + $SKIPPED] == 0 then
      if charges[i] then
        P[p + $PFLOOR] = max(P[p + $PFLOOR], charges[i])
        adjust(i, P, max(P[p + $CHARGED], charges[i]))
      end
      if D[(i - 1) * $FIELDS + $KIND] == $LEASE then
        call('ZADD', key, 'XX', int(ends), id)
        call('PEXPIRE', key, $LEASELIFE + $SLACK + behind)
      end
    end
  end
  write()
  remember(P, ends)
  return 1
end

if operation == 'reap' then
  if not state then -- it was forgotten before it was reaped
    call('ZREM', duekey, id)
    return 0
  end
  if state ~= $LIVE or ends > now or #P ~= n * $PARTS then return 0 end
  finish(P, function(i) return P[(i - 1) * $PARTS + $PFLOOR] end)
  write()
  record($REAPED, now + $REAPEDLIFE, P, '', $REAPEDLIFE)
  return 1
end

if operation == 'due' then -- how many reservations there are, and whose time is over
  local out = call('ZRANGEBYSCORE', duekey, '-inf', int(now), 'LIMIT', 0, 500)
  table.insert(out, 1, int(call('ZCARD', duekey)))
  return out
end

return redis.error_reply('ERR unknown operation')
