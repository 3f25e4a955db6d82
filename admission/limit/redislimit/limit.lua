-- One call of the store: all counters of one home are read, judged and written
-- together. The arithmetic is that of limit.Memory (window.go, lease.go, quota.go),
-- in integers below 2^53, which a double holds exactly; the names are the same.
--
-- KEYS   1 record of the reservation, 2 clock, 3 index of reservations by their end,
--        4... counters
-- ARGV   1 operation, 2 time in ms (empty: the server's), 3 id, 4 dimensions, and
--        of reserve  5 "1" to be given what a cancel needs
--        of cancel   5... what it was given
--        of settle   5 the charges, 6 "1" where an unknown id is charged, 7 how long
--                    ago it used what windows are charged, in ms
--        of renew    5 the charges (empty: not known)
--
-- Lists of numbers travel and lie in counters as doubles, little end first: one
-- string is read by one call, where a field each would take hundreds. Numbers that go
-- to Redis are made text once: Redis takes a microsecond for each.
--
-- What is slow here is not arithmetic but making functions, formatting numbers and
-- calling Redis. So functions are made only when they are needed, in the order of the
-- operations; and keys are given a new expiry only when the old one comes near.
--
-- Each $NAME is a constant, whose number the store puts in before it loads the script:
-- script.go has them all. (As locals, each function would have to search for those it
-- uses, in every call.)
--
-- Fields of a dimension; where $EDGE is not 0 there are all $FIELDS:
--   $KIND $SOFT $LIMIT $COST $EDGE; of windows $FLOOR $WINDOW $BUCKET $BURST, of quotas
--   $BEGIN $END; then $NEXTLIMIT $NEXTBURST
-- Fields of a window's counter; pairs of newest charge and sum follow, oldest first, of
-- which all sums together are $SUM:
--   $EXPIRES $DEBT $DEBTAT $DEBTWINDOW $RATE $SUM, and the first pair at $FIRST
-- Fields of a quota's counter: $QBEGIN $QEND $USED, and the part of that which is not
-- settled, $HELD
-- Fields of a record's head: $RSTATE $RENDS $RCOUNT $RTIME $RLENGTH $RCHARGED
-- States of a reservation: $LIVE $REAPED $SETTLED
-- A reservation remembers $SKIPPED of a dimension that was exceeded and soft, and
-- $NOWHERE of a quota when it was made by its settlement.
--
-- Keys outlive their use by $SLACK, so that no expiry decides anything. The clock is
-- written when it is $PRECISION behind. Once in a $SPELL leases that have ended are
-- removed, and those that have not are kept from expiring.
--
-- What is read back is checked before it is used. What is not of our form, or has a
-- number that no counter can have, counts as not there, is written over when something
-- is charged, and adds $BADRECORD to the verdict. No more than $MAXLIST numbers are
-- unpacked at once, nor as many leases named.
--
-- Nothing is counted beyond what a double holds exactly: a charge up to $MAXCHARGE, a
-- bucket up to $MAXSUM, so that those of a window add up, a debt and a quota up to
-- $MAXDEBT.

local call, floor, ceil, max, min = redis.call, math.floor, math.ceil, math.max, math.min
local operation, id, raw = ARGV[1], ARGV[3], ARGV[4]
local n = #KEYS - 3
local settled = operation == 'settled' -- look, without what quotas only hold
if settled then operation = 'peek' end

local function numbers(text)
  local list = {struct.unpack('<' .. string.rep('d', #text / $NUMBER), text)}
  list[#list] = nil -- unpack ends with a position
  return list
end

local function text(number) return string.format('%.0f', number) end

local function packed(list) return struct.pack('<' .. string.rep('d', #list), unpack(list)) end

local bad = 0 -- or $BADRECORD

-- sane reports whether all are numbers that a counter can have, least at least.
local function sane(list, least)
  for i = 1, #list do
    local v = list[i]
    if not (v >= least and v <= $MAXDEBT) then return false end
  end
  return true
end

-- counter reads one; nil: it is damaged.
local function counter(value, kind)
  local size = #value / $NUMBER
  if size % 1 ~= 0 or size > $MAXLIST then return nil end
  local c = numbers(value)
  if not sane(c, 0) then return nil end
  if kind == $QUOTA then return (size == $USED or size == $HELD) and c or nil end
  if size < $SUM or size % 2 ~= 0 or c[$DEBT] > 0 and (c[$DEBTWINDOW] < 1 or c[$RATE] < 1) then return nil end
  local sum, last = 0, 0
  for i = $FIRST, size, 2 do
    if c[i] < last then return nil end
    sum, last = sum + c[i + 1], c[i]
  end
  return sum == c[$SUM] and c or nil
end

-- ordered runs a command on a sorted set. What is something else there is removed.
local function ordered(command, key, ...)
  local out = redis.pcall(command, key, ...)
  if type(out) ~= 'table' or not out.err then return out end
  if string.find(out.err, 'WRONGTYPE', 1, true) then
    bad = $BADRECORD
    call('DEL', key)
  end
  return call(command, key, ...)
end

-- places are where in a list each dimension begins, less one, and where the last ends.
local function places(list)
  local at, d = {}, 0
  for i = 1, n do
    at[i] = d
    local kind = list[d + $KIND]
    if list[d + $EDGE] ~= 0 then d = d + $FIELDS elseif kind == $LEASE then d = d + $LEASEFIELDS elseif kind == $QUOTA then d = d + $QUOTAFIELDS else d = d + $WINDOWFIELDS end
  end
  return at, d
end

local D = numbers(raw)
local where = places(D)

local values = call('MGET', unpack(KEYS))
local now = tonumber(ARGV[2])
if not now then
  local time = call('TIME')
  now = time[1] * 1000 + floor(time[2] / 1000)
end
-- The clock is held against going back over all that was written. One that was an
-- hour ahead was wrong.
local latest, behind = tonumber(values[2]) or 0, 0
if latest > now and latest <= now + $HOUR then behind, now = latest - now, latest end

if operation == 'due' then -- how many reservations there are, and whose time is over
  local out = ordered('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, $DUEBATCH)
  table.insert(out, 1, tostring(max(ordered('ZCARD', KEYS[3]) - 1, 0)))
  return out
end

local cells = {}
for i = 1, n do
  if values[i + 3] then
    local kind = D[where[i] + $KIND]
    local c = counter(values[i + 3], kind)
    if not c then
      bad, values[i + 3] = $BADRECORD, false
    elseif kind == $QUOTA or #c < $FIRST or c[#c - 1] <= now + $HOUR then
      cells[i] = c
    end -- else a wrong clock has charged it, and it would count for as long as that was ahead
  end
end

------------------------------------------------------------------- checks

local function inforce(d, at)
  local edge = D[d + $EDGE]
  if edge ~= 0 and at >= edge then return D[d + $NEXTLIMIT], D[d + $NEXTBURST] end
  return D[d + $LIMIT], D[d + $BURST] -- of a lease the second is not used
end

local function drain(debt, rate, elapsed)
  if debt == 0 or elapsed <= 0 then return debt end
  if elapsed > floor(debt / rate) then return 0 end
  return debt - rate * elapsed
end

local function used(c, at, length)
  local sum, i = c[$SUM], $FIRST
  while c[i] and c[i] <= at - length do
    sum, i = sum - c[i + 1], i + 2
  end
  return sum
end

-- later is when a window lets the cost through that it does not now; -1: never.
local function later(d, c)
  local cost, length = D[d + $COST], D[d + $WINDOW]
  local function fitsat(limit, burst, at)
    if cost > limit or burst > 0 and cost > burst then return math.huge end
    local left, when = used(c, at, length), at
    for i = $FIRST, #c, 2 do
      if left <= limit - cost then break end
      if c[i] > at - length then left, when = left - c[i + 1], c[i] + length end
    end
    if burst > 0 then
      local over = drain(c[$DEBT], c[$RATE], at - c[$DEBTAT]) - (burst - cost) * c[$DEBTWINDOW]
      if over > 0 then when = max(when, at + ceil(over / c[$RATE])) end
    end
    return when
  end
  local limit, burst = inforce(d, now)
  local at, edge = fitsat(limit, burst, now), D[d + $EDGE]
  if edge > now and at >= edge then at = fitsat(D[d + $NEXTLIMIT], D[d + $NEXTBURST], edge) end
  return at == math.huge and -1 or at - now
end

-- ended is when a lease lets the cost through; -1: never.
local function ended(d, key, count, limit)
  local function endsat(at, i)
    return tonumber(ordered('ZRANGEBYSCORE', key, '(' .. at, '+inf', 'WITHSCORES', 'LIMIT', i - 1, 1)[2] or math.huge)
  end
  local cost, edge = D[d + $COST], D[d + $EDGE]
  local at = endsat(now, count + cost - limit)
  if edge > now and at >= edge then
    local over = ordered('ZCOUNT', key, '(' .. edge, '+inf') + cost - D[d + $NEXTLIMIT]
    at = edge
    if over > 0 then at = endsat(edge, over) end
  end
  return at == math.huge and -1 or at - now
end

-- S is the answer: the verdict, the time, and of each dimension what is used, what
-- remains, when it is reset, and the wait (0: it fits, -1: never). check fills in a
-- dimension's and changes nothing.
-- (Made from other numbers, so that the list does not have to grow.)
local S = {unpack(D, 1, n * $STATEFIELDS + $STATEHEAD)}
S[2] = now

local function check(i, cost)
  local d, c, o = where[i], cells[i], i * $STATEFIELDS - $STATEBASE
  local kind = D[d + $KIND]
  if kind == $QUOTA then
    local sum, ends, limit, wait = 0, D[d + $END], D[d + $LIMIT], 0
    if c and c[$QBEGIN] >= D[d + $BEGIN] then sum, ends = c[$USED], c[$QEND] end
    if settled and c and c[$HELD] then sum = max(sum - c[$HELD], 0) end
    if now >= ends + $SKEW then sum = 0 end
    if cost > 0 and sum + cost > limit then wait = cost > limit and -1 or max(ends - now, 1) end
    S[o], S[o + 1], S[o + 2], S[o + 3] = sum, max(limit - sum, 0), max(ends - now, 0), wait
    return
  end
  local limit, burst = inforce(d, now)
  if kind == $LEASE then
    local key, reset, wait = KEYS[i + 3], 0, 0
    local count = ordered('ZCOUNT', key, '(' .. now, '+inf')
    if count > 0 then reset = min(ordered('ZRANGE', key, -1, -1, 'WITHSCORES')[2] - now, $MAXDEBT) end
    if cost > 0 and count + cost > limit then wait = ended(d, key, count, limit) end
    S[o], S[o + 1], S[o + 2], S[o + 3] = count, max(limit - count, 0), reset, wait
    return
  end
  local sum, reset, debt, length = 0, 0, 0, D[d + $WINDOW]
  if c then
    sum = used(c, now, length)
    for j = #c - 1, $FIRST, -2 do
      if c[j + 1] > 0 then
        reset = max(c[j] + length - now, 0)
        break
      end
    end
  end
  local remaining = limit - sum
  if burst > 0 then
    remaining = min(remaining, burst)
    if c then debt = drain(c[$DEBT], c[$RATE], now - c[$DEBTAT]) end
    if debt > 0 then
      remaining = min(remaining, burst - ceil(debt / c[$DEBTWINDOW]))
      reset = max(reset, ceil(debt / c[$RATE]))
    end
  end
  local wait = 0
  if cost > 0 and (sum + cost > limit or burst > 0 and (cost > burst or debt > 0 and debt > (burst - cost) * c[$DEBTWINDOW])) then
    wait = later(d, c or {0, 0, 0, 0, 0, 0})
  end
  S[o], S[o + 1], S[o + 2], S[o + 3] = sum, max(remaining, 0), reset, wait
end

local function answer(verdict)
  S[1] = verdict + bad
  return packed(S)
end

local function answerall(verdict)
  for i = 1, n do check(i, 0) end
  return answer(verdict)
end

-- The record: state, end, dimensions, time, length of the packed dimensions, and
-- whether more is known than when it was made. Then what each dimension remembers
-- of the charge: a window its debt, a quota its begin. Then, where more is known,
-- what each is charged and its floor. At last, for the reaper, who knows nothing
-- else, the dimensions and their keys.
local state, ends, at, X, charged, floors
if values[1] then
  local head = numbers(string.sub(values[1], 1, $HEADBYTES))
  local whole = #head == $HEADFIELDS and sane(head, -1) and head[$RSTATE] >= $LIVE and head[$RSTATE] <= $SETTLED and head[$RCOUNT] >= 0 and
    (head[$RSTATE] == $SETTLED or (head[$RCHARGED] == 0 or head[$RCHARGED] == 1) and #values[1] >= $HEADBYTES + head[$RCOUNT] * ($NUMBER + 2 * $NUMBER * head[$RCHARGED]) + head[$RLENGTH])
  if not whole then
    bad = $BADRECORD
  elseif head[$RSTATE] == $LIVE or head[$RENDS] > now then
    state, ends, at = head[$RSTATE], head[$RENDS], head[$RTIME]
  end
end

if operation == 'peek' or operation == 'reserve' then
  if state and operation == 'reserve' then return answerall($AGAIN) end
  local allowed = $ALLOWED
  for i = 1, n do
    local d = where[i]
    check(i, D[d + $COST])
    if S[i * $STATEFIELDS + $STATEWAIT] ~= 0 and D[d + $SOFT] == 0 then allowed = $REFUSED end
  end
  if operation == 'peek' or allowed == $REFUSED then return answer(allowed) end
end

------------------------------------------------------------------ changes

local dirty = {}

-- change is a dimension's counter, which will be written.
local function change(i, kind)
  local c = cells[i]
  if not c then
    if kind == $QUOTA then c = {0, 0, 0, 0, 0} else c = {0, 0, 0, 0, 0, 0} end
    cells[i] = c
  end
  dirty[i] = 0
  return c
end

local function enter(d, c)
  if c[$QBEGIN] < D[d + $BEGIN] then c[$QBEGIN], c[$QEND], c[$USED], c[$HELD] = D[d + $BEGIN], D[d + $END], 0, 0 end
end

-- drop forgets the buckets that count no longer.
local function drop(d, c)
  local gone, size, length = $FIRST, #c, D[d + $WINDOW]
  while gone <= size and c[gone] <= now - length do
    c[$SUM] = c[$SUM] - c[gone + 1]
    gone = gone + 2
  end
  if gone > size then c[$SUM] = 0 end -- whatever it was
  if gone > $FIRST then
    for i = gone, size do c[i - gone + $FIRST] = c[i] end
    for i = size, size - gone + $FIRST + 1, -1 do c[i] = nil end
  end
end

local function add(d, c, amount)
  drop(d, c)
  local bucket = D[d + $BUCKET]
  local last = #c - 1
  if last >= $FIRST and floor(c[last] / bucket) >= floor(now / bucket) then
    local was = c[last + 1]
    c[last], c[last + 1] = max(c[last], now), min(was + amount, $MAXSUM)
    c[$SUM] = c[$SUM] + c[last + 1] - was
  else
    c[last + 2], c[last + 3] = now, min(amount, $MAXSUM)
    c[$SUM] = c[$SUM] + c[last + 3]
  end
end

-- debtof is an amount that is not negative, as debt of a window.
local function debtof(amount, length) return min(amount, floor($MAXDEBT / length)) * length end

local function owe(d, c, more)
  local limit, burst = inforce(d, now)
  if burst == 0 then return end
  local debt, length = drain(c[$DEBT], c[$RATE], now - c[$DEBTAT]), D[d + $WINDOW]
  if debt == 0 then
    c[$DEBTWINDOW], c[$RATE] = length, limit
  elseif c[$DEBTWINDOW] ~= length then
    local whole = debtof(floor(math.abs(more) / length), c[$DEBTWINDOW])
    more = more < 0 and -whole or whole
  end
  c[$DEBT], c[$DEBTAT] = min(max(debt + more, 0), $MAXDEBT), now
end

-- write puts back what was changed, and the clock with it.
local function write()
  for i = 1, n do
    if dirty[i] then
      local c, d, need = cells[i], where[i], 0
      if D[d + $KIND] == $QUOTA then
        need = c[$QEND] + $SKEW
      else
        need = now + D[d + $WINDOW]
        local debt = drain(c[$DEBT], c[$RATE], now - c[$DEBTAT])
        if debt > 0 then need = max(need, now + ceil(debt / c[$RATE])) end
      end
      if need > c[$EXPIRES] or not values[i + 3] then
        c[$EXPIRES] = max(need, c[$EXPIRES], now) + $SLACK
        dirty[i] = packed(c)
        call('SET', KEYS[i + 3], dirty[i], 'PX', c[$EXPIRES] - now + behind)
      else
        dirty[i] = packed(c)
        if #dirty[i] < #values[i + 3] then
          call('SET', KEYS[i + 3], dirty[i], 'KEEPTTL')
        else
          call('SETRANGE', KEYS[i + 3], '0', dirty[i]) -- the same, but faster
        end
      end
    end
  end
  -- The index holds an entry that never ends, so that it is there, with its expiry,
  -- for as long as the clock is.
  if floor(latest / $HOUR) == floor(now / $HOUR) then
    if now - latest > $PRECISION then call('SET', KEYS[2], now, 'KEEPTTL') end
  else
    call('SET', KEYS[2], now, 'PX', $CLOCKLIFE)
    ordered('ZADD', KEYS[3], '+inf', '')
    call('PEXPIRE', KEYS[3], $MONTH)
  end
end

-- remember writes the record of a reservation that lives.
local function remember(more)
  -- It lives until it is reaped. What has reserved nothing of a quota has nothing to
  -- give back once its windows are over.
  local life = '$RECORD'
  for i = 1, n do
    if D[where[i] + $KIND] == $QUOTA then life = '$MONTH' end
  end
  call('SET', KEYS[1], packed({$LIVE, ends, n, at, #raw, more == '' and 0 or 1}) .. packed(X) .. more .. raw .. table.concat(KEYS, '\0', 4), 'PX', life)
  ordered('ZADD', KEYS[3], text(ends), id)
end

-- lease runs a command on the members of a lease: of a request with several sequences
-- the id with the number of each. With a score they are what ZADD wants.
local function lease(command, key, flag, cost, score)
  local list = {flag}
  for i = 1, min(max(cost, 1), $MAXSLOTS) do
    if score then list[#list + 1] = score end
    list[#list + 1] = i == 1 and id or id .. '#' .. i
    if #list >= $MAXLIST then
      ordered(command, key, unpack(list))
      list = {flag}
    end
  end
  if #list > (flag and 1 or 0) then ordered(command, key, unpack(list)) end
end

if operation == 'reserve' then
  at, ends, X = now, now + $LEASELIFE, {}
  local stays = text(ends)
  for i = 1, n do
    local d, o = where[i], i * $STATEFIELDS - $STATEBASE
    local kind, cost = D[d + $KIND], D[d + $COST]
    if S[o + 3] ~= 0 then -- soft
      X[i] = $SKIPPED
    elseif kind == $LEASE then
      X[i] = 0
      local key, last = KEYS[i + 3], now + S[o + 2] -- when the last one ends
      if cost > 0 then
        lease('ZADD', key, nil, cost, stays)
        if S[o] == 0 or floor(last / $SPELL) ~= floor(ends / $SPELL) then
          call('PEXPIRE', key, '$HOUR')
          -- Where none runs there are hardly ever some that have ended.
          if S[o] > 0 or now % $SWEEP == 0 then ordered('ZREMRANGEBYSCORE', key, '-inf', text(now)) end
        end
        S[o] = S[o] + cost
        S[o + 1], S[o + 2] = max(S[o + 1] - cost, 0), max(S[o + 2], $LEASELIFE)
      end
    elseif kind == $QUOTA then
      local c = change(i, kind)
      enter(d, c)
      c[$USED], c[$HELD], X[i] = min(c[$USED] + cost, $MAXDEBT), min((c[$HELD] or 0) + cost, $MAXDEBT), c[$QBEGIN]
      if now < c[$QEND] + $SKEW then
        S[o], S[o + 1] = c[$USED], max(D[d + $LIMIT] - c[$USED], 0)
      else
        check(i, 0)
      end
    else
      local c = change(i, kind)
      local limit, burst = inforce(d, now)
      local length = D[d + $WINDOW]
      if burst > 0 then
        local debt = drain(c[$DEBT], c[$RATE], now - c[$DEBTAT])
        if debt ~= 0 and c[$DEBTWINDOW] ~= length then debt = debtof(ceil(debt / c[$DEBTWINDOW]), length) end
        c[$DEBT], c[$DEBTAT], c[$DEBTWINDOW], c[$RATE] = debt, now, length, limit
        owe(d, c, debtof(cost, length))
      end
      add(d, c, cost)
      X[i] = c[$DEBT]
      if cost > 0 and burst == 0 then
        S[o] = S[o] + cost
        S[o + 1], S[o + 2] = limit - S[o], length
      else
        check(i, 0)
      end
    end
  end
  write()
  remember('')
  if ARGV[5] ~= '1' then return answer($ALLOWED) end
  local out = {answer($ALLOWED)}
  for i = 1, n do
    out[2 * i], out[2 * i + 1] = values[i + 3] or '', dirty[i] or ''
  end
  return out
end

-- What follows is about a reservation that was made before.

-- known reads what its record says; false where it is of other dimensions, nil where
-- it is damaged.
local function known()
  local record = values[1]
  local head = numbers(string.sub(record, 1, $HEADBYTES))
  if head[$RCOUNT] ~= n then return false end
  local more = $HEADBYTES + n * $NUMBER
  X = numbers(string.sub(record, $HEADBYTES + 1, more))
  if not sane(X, $NOWHERE) then
    bad = $BADRECORD
    return nil
  end
  local tail = more + 1 + head[$RCHARGED] * n * (2 * $NUMBER)
  if head[$RCHARGED] == 1 then
    charged, floors = numbers(string.sub(record, more + 1, more + n * $NUMBER)), numbers(string.sub(record, more + n * $NUMBER + 1, tail - 1))
    if sane(charged, 0) and sane(floors, 0) then return true end
    bad = $BADRECORD
    return nil
  end
  local made = string.sub(record, tail, tail + head[$RLENGTH] - 1)
  local list, place = D, where
  if made ~= raw then
    local last
    list = #made <= $NUMBER * $MAXLIST and numbers(made) or {}
    if #list >= $LEASEFIELDS * n then place, last = places(list) end
    if last ~= #list or not sane(list, 0) then
      bad = $BADRECORD
      return nil
    end
  end
  charged, floors = {}, {}
  for i = 1, n do
    local d = place[i]
    charged[i], floors[i] = list[d + $COST], list[d + $FLOOR]
    if list[d + $KIND] == $LEASE then floors[i] = 0 end
    if X[i] == $SKIPPED then charged[i], floors[i] = 0, 0 end
  end
  return true
end

local function bucketof(d, c)
  for i = $FIRST, #c, 2 do
    if c[i] >= at then
      local bucket = D[d + $BUCKET]
      if c[i] > now - D[d + $WINDOW] and floor(c[i] / bucket) == floor(at / bucket) then return i end
      return nil
    end
  end
end

local age = 0 -- of what windows are charged for an id that is not known, in ms

-- addpast charges an amount that was used at an earlier time. The token bucket is
-- charged what has not drained since.
local function addpast(d, c, amount)
  local length, bucket, when = D[d + $WINDOW], D[d + $BUCKET], now - age
  if age >= length then return end
  local limit, burst = inforce(d, now)
  if burst > 0 then owe(d, c, drain(debtof(amount, length), limit, age)) end
  drop(d, c)
  local i = $FIRST
  while c[i] and floor(c[i] / bucket) < floor(when / bucket) do i = i + 2 end
  if not c[i] or floor(c[i] / bucket) ~= floor(when / bucket) then
    table.insert(c, i, when)
    table.insert(c, i + 1, 0)
  end
  local was = c[i + 1]
  c[i], c[i + 1] = max(c[i], when), min(was + amount, $MAXSUM)
  c[$SUM] = c[$SUM] + c[i + 1] - was
end

-- adjust brings one charge of a reservation to what it is to be.
local function adjust(i, target)
  local d, delta = where[i], target - charged[i]
  local kind = D[d + $KIND]
  charged[i] = target
  if delta == 0 or kind == $LEASE or not cells[i] and delta < 0 then return end
  local c = change(i, kind)
  if kind == $QUOTA then
    enter(d, c)
    if X[i] == c[$QBEGIN] or delta > 0 then c[$USED] = min(max(c[$USED] + delta, 0), $MAXDEBT) end
    return
  end
  local length = D[d + $WINDOW]
  if delta > 0 and age > 0 then
    addpast(d, c, delta)
    return
  end
  if delta > 0 then
    owe(d, c, debtof(delta, length))
    add(d, c, delta)
    return
  end
  local b = bucketof(d, c)
  if not b then return end
  local was, refund = c[b + 1], min(-delta, D[d + $COST])
  c[b + 1] = max(was - refund, 0)
  c[$SUM] = c[$SUM] + c[b + 1] - was
  owe(d, c, -min(debtof(refund, length), drain(X[i], c[$RATE], now - at)))
end

-- hold notes that a reservation that lives has so much more of a quota, or less.
local function hold(i, more)
  local c = cells[i]
  if more == 0 or D[where[i] + $KIND] ~= $QUOTA or not c or c[$QBEGIN] ~= X[i] then return end
  change(i, $QUOTA)
  c[$HELD] = min(max((c[$HELD] or 0) + more, 0), $MAXDEBT)
end

-- finish brings all charges to what they are to be and ends the leases.
local function finish(target)
  for i = 1, n do
    if X[i] ~= $SKIPPED then
      if state == $LIVE then hold(i, -charged[i]) end
      adjust(i, target(i))
      if D[where[i] + $KIND] == $LEASE then lease('ZREM', KEYS[i + 3], nil, D[where[i] + $COST]) end
    end
  end
  ordered('ZREM', KEYS[3], id)
  write()
end

local function close(as, life, more)
  call('SET', KEYS[1], packed({as, now + life, n, at, 0, 1}) .. more, 'PX', life + $SLACK + behind)
end

if operation == 'settle' then
  if not state and ARGV[6] == '1' then
    at, X, charged, age = -1, {}, {}, max(tonumber(ARGV[7]) or 0, 0)
    for i = 1, n do
      X[i], charged[i] = 0, 0
      if D[where[i] + $KIND] == $QUOTA then X[i] = $NOWHERE end
    end
  elseif not state or state == $SETTLED then
    return answerall($REFUSED)
  else
    local read = known()
    if read == nil then return answerall($REFUSED) end
    if not read then return packed({$WRONGDIMS}) end
  end
  local charges = numbers(ARGV[5])
  finish(function(i) return min(max(charges[i], 0), $MAXCHARGE) end)
  -- Who settles what was never reserved may be repeating itself much later.
  close($SETTLED, ARGV[6] == '1' and $NEWLIFE or $SETTLEDLIFE, '')
  return answerall($ALLOWED)
end

if operation == 'reap' and (state ~= $LIVE or not known()) then
  -- It was forgotten before it was reaped, or nobody can read it.
  ordered('ZREM', KEYS[3], id)
  if bad > 0 or state == $LIVE then call('DEL', KEYS[1]) end
  return bad
end
if state ~= $LIVE or not known() then return bad end

if operation == 'reap' then
  if ends > now then -- the index was wrong
    ordered('ZADD', KEYS[3], text(ends), id)
    return bad
  end
  finish(function(i) return floors[i] end)
  close($REAPED, $REAPEDLIFE, packed(X) .. packed(charged) .. packed(floors))
  return 1 + bad
end

if operation == 'renew' then
  if ends <= now then return bad end
  local charges = numbers(ARGV[5])
  ends = now + $LEASELIFE
  for i = 1, n do
    if X[i] ~= $SKIPPED then
      if charges[i] then
        local charge, was = min(max(charges[i], 0), $MAXCHARGE), charged[i]
        floors[i] = max(floors[i], charge)
        adjust(i, max(was, charge))
        hold(i, charged[i] - was)
      end
      if D[where[i] + $KIND] == $LEASE then
        lease('ZADD', KEYS[i + 3], 'XX', D[where[i] + $COST], text(ends))
        call('PEXPIRE', KEYS[i + 3], '$HOUR')
      end
    end
  end
  write()
  remember(packed(charged) .. packed(floors))
  return 1 + bad
end

-- cancel: a refusal elsewhere takes back what was reserved here, as if it had never
-- been: where nobody else has charged since, the counter is what it was.
local restore = {}
for i = 1, n do
  local was, is = ARGV[2 * i + 3], ARGV[2 * i + 4]
  if is ~= '' and is == values[i + 3] then restore[i] = was end
end
finish(function(i) return restore[i] and charged[i] or 0 end)
for i, was in pairs(restore) do
  if was == '' then call('DEL', KEYS[i + 3]) else call('SET', KEYS[i + 3], was, 'KEEPTTL') end
end
call('DEL', KEYS[1])
return 1 + bad
