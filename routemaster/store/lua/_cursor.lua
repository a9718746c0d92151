-- Put before every script of this folder: time, IDs, and the form in which a
-- cursor is kept. Model in Python: routemaster.model.EventID and Cursor.
--
--   ID      <us>-<n>: microseconds by Redis's clock, running number in the log
--   cursor  "<membership> <version> <sent> <dropped> <after>/<until> <after>/"; the fourth word is
--           "<dropped>,<expired>,<skipped>,<parked>,<rewinds>" if one of the others is not 0
--   cuts    "<kind><first>-<last> ..." by number, oldest first, later ones prevail: what a cursor passed
--           and was not delivered (d, e, s, p for dropped to parked), n not subscribed, u not known any more, a acknowledged:
--           it was parked, and delivered when it was tried again
--
-- Refusals are error replies "RM:<CODE> ..." (routemaster.store.redis_store maps them to errors).

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- Milliseconds until a key expires, at most so many: Redis keeps the time at which it
-- does, so that a clock set back by an hour would leave a dead worker's lease that hour.
local function remaining(key, most)
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= tonumber(most) then return left end
  redis.call('PEXPIRE', key, most)
  return tonumber(most)
end

local function digits(number)
  return string.format('%.0f', number)
end

local function n_of(id)
  return tonumber(string.match(id, '%-(%d+)$'))
end

local function us_of(id)
  return tonumber(string.match(id, '^(%d+)'))
end

local OTHERS = {'dropped', 'expired', 'skipped', 'parked', 'rewinds'}

local function new_cursor(membership)
  return {membership = membership, sent = 0, dropped = 0, expired = 0, skipped = 0, parked = 0, rewinds = 0, spans = {}}
end

local function parse(text)
  local cursor, field = new_cursor(0), 0
  for word in string.gmatch(text, '%S+') do
    field = field + 1
    if field == 1 then cursor.membership = tonumber(word)
    elseif field == 2 then cursor.version = tonumber(word)
    elseif field == 3 then cursor.sent = tonumber(word)
    elseif field == 4 then
      local index = 0
      for count in string.gmatch(word, '%d+') do
        index = index + 1
        cursor[OTHERS[index]] = tonumber(count)
      end
    else
      local after, till = string.match(word, '^([^/]*)/(.*)$')
      cursor.spans[#cursor.spans + 1] = {after = after, till = till ~= '' and till or nil}
    end
  end
  return cursor
end

local function format(cursor)
  local counts = digits(cursor.dropped)
  if cursor.expired + cursor.skipped + cursor.parked + cursor.rewinds > 0 then
    for index = 2, #OTHERS do counts = counts .. ',' .. digits(cursor[OTHERS[index]]) end
  end
  local words = {digits(cursor.membership), digits(cursor.version), digits(cursor.sent), counts}
  for _, span in ipairs(cursor.spans) do
    words[#words + 1] = span.after .. '/' .. (span.till or '')
  end
  return table.concat(words, ' ')
end

-- The span that is still open, or nil.
local function open_span(cursor)
  local last = cursor.spans[#cursor.spans]
  return last and not last.till and last or nil
end

-- Closes the open span at tail; removes it if it holds no event.
local function close(cursor, tail)
  local last = open_span(cursor)
  if last then
    last.till = tail
    if n_of(last.after) >= n_of(tail) then cursor.spans[#cursor.spans] = nil end
  end
end

-- Moves the cursor past an ID, never back, and counts the events passed as `kind`;
-- returns their number. What is not `sent` is noted when the cursor is stored.
local function pass(cursor, id, kind)
  local n, passed, left = n_of(id), 0, {}
  for _, span in ipairs(cursor.spans) do
    local after, till = n_of(span.after), span.till and n_of(span.till)
    local last = till and till <= n and till or n
    if last > after then
      passed = passed + last - after
      if kind ~= 'sent' then
        cursor.cuts = cursor.cuts or {}
        cursor.cuts[#cursor.cuts + 1] = {string.sub(kind, 1, 1), after + 1, last}
      end
    end
    if not till or till > n then
      if after < n then span.after = id end
      left[#left + 1] = span
    end
  end
  cursor.spans = left
  cursor[kind] = cursor[kind] + passed
  return passed
end

local MOST_CUTS = 32

-- Adds to a subscriber's cuts; the oldest are given up if there are too many.
local function note(meta, subscriber, cuts)
  local field, words = 'cuts:' .. subscriber, {}
  for word in string.gmatch(redis.call('HGET', meta, field) or '', '%S+') do words[#words + 1] = word end
  for _, cut in ipairs(cuts) do
    local kind, first, last = string.match(words[#words] or '', '^(%a)(%d+)%-(%d+)$')
    if kind == cut[1] and tonumber(last) + 1 == cut[2] then
      words[#words] = kind .. first .. '-' .. digits(cut[3])
    else
      words[#words + 1] = cut[1] .. digits(cut[2]) .. '-' .. digits(cut[3])
    end
  end
  while #words > MOST_CUTS do
    local given_up = table.remove(words, 1)
    local before = math.max(tonumber(string.match(given_up, '(%d+)$')), tonumber(string.match(words[1], '(%d+)$')))
    words[1] = 'u1-' .. digits(before)
  end
  redis.call('HSET', meta, field, table.concat(words, ' '))
end

-- Forgets the cuts after a number: the events from there on come again.
local function forget_cuts(meta, subscriber, after)
  local field, words = 'cuts:' .. subscriber, {}
  local known = redis.call('HGET', meta, field)
  for kind, first, last in string.gmatch(known or '', '(%a)(%d+)%-(%d+)') do
    if tonumber(first) <= after then
      words[#words + 1] = kind .. first .. '-' .. digits(math.min(tonumber(last), after))
    end
  end
  if known then redis.call('HSET', meta, field, table.concat(words, ' ')) end
end

-- The ID up to which the log holds no event any more: the tail if it is empty. What a
-- cursor has not passed up to there was dropped.
local function last_gone(log, tail)
  local head = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  return head and digits(us_of(head[1])) .. '-' .. digits(n_of(head[1]) - 1) or tail
end

-- The last entry that was accepted before a time: its ID, or nil. The first entry is looked at
-- before, because XREVRANGE reads the whole log if it ends before that.
local function last_before(log, us)
  local head = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if not head or us_of(head[1]) >= us then return nil end
  return redis.call('XREVRANGE', log, digits(us - 1), '-', 'COUNT', 1)[1][1]
end

-- The entry with a number, or the nearest that the log holds: its ID, or nil if the log is empty.
-- Numbers and times grow together, so the time is found by bisection.
local function id_at(log, n)
  local first, last = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1], redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not first then return nil end
  if n_of(first[1]) >= n then return first[1] end
  if n_of(last[1]) <= n then return last[1] end
  local low, high, nearest = us_of(first[1]), us_of(last[1]), last[1]
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', log, digits(middle) .. '-' .. digits(n), '+', 'COUNT', 1)[1]
    local found = n_of(entry[1])
    if found == n then return entry[1] end
    if found < n then low = us_of(entry[1]) else high, nearest = middle - 1, entry[1] end
  end
  return nearest
end

-- The ID after which a topic's history begins; nil if the topic keeps none.
local function history_start(meta, log, tail)
  local known = redis.call('HMGET', meta, 'history', 'history_events')
  local history = tonumber(known[1] or '0')
  if history == 0 then return nil end
  local start = last_before(log, clock() - history * 1000)
  local events = known[2] and known[2] ~= '' and n_of(tail) - tonumber(known[2])
  if events and events > 0 and events > (start and n_of(start) or 0) then
    local entry = events < n_of(tail) and id_at(log, events) or tail
    if entry and n_of(entry) <= events then start = entry end -- else the log begins later
  end
  return start or last_gone(log, tail)
end

-- The ID up to which events of a topic cannot come again.
local function reach(meta, log, tail)
  local gone, start = last_gone(log, tail), history_start(meta, log, tail) or tail
  return n_of(start) > n_of(gone) and start or gone
end

-- The place before a time in a topic's history, as far as that reaches; OLDEST is 0.
local function place_before(meta, log, tail, us)
  local first = reach(meta, log, tail)
  local before = us > 0 and last_before(log, us) or first
  return n_of(before) > n_of(first) and before or first
end

-- HDEL first: Redis 6.2 refuses a script when out of memory only at its first write,
-- and only if that command may take memory. So a cursor moves and the log is trimmed
-- while Redis is out of memory; Redis 7 has the flag `allow-oom` for this.
-- HDEL of an empty field, because a deleted key must not be used again: while a
-- cluster moves its slot to another node, the script would end there half done.
local function store(meta, cursors, subscriber, cursor)
  redis.call('HDEL', cursors, '')
  redis.call('HSET', cursors, subscriber, format(cursor))
  if cursor.cuts then note(meta, subscriber, cursor.cuts) end
end

-- The place of the cursor that is furthest behind, nil if none waits for an event.
local function lowest_of(texts)
  local lowest, lowest_n
  for _, text in ipairs(texts) do
    local first = string.match(text, '^%S+ %S+ %S+ %S+ ([^/]+)/')
    if first then
      local n = n_of(first)
      if not lowest_n or n < lowest_n then lowest, lowest_n = first, n end
    end
  end
  return lowest
end

-- Removes the events that every cursor has passed and that the topic's history does not keep;
-- `how` is '~' (whole stream nodes only, cheap) or '='. A deleted topic's meta is removed with
-- its last cursor. `texts`: all cursors, if the caller has just deleted one, see store().
-- Scripts set the IDs, not Redis, so a deleted log continues with the next number.
local function trim(meta, log, cursors, how, texts)
  texts = texts or redis.call('HVALS', cursors)
  local tail = redis.call('HGET', meta, 'tail')
  local keep, start = lowest_of(texts), tail and history_start(meta, log, tail)
  if start and (not keep or n_of(start) < n_of(keep)) then keep = start end
  if keep then
    redis.call('XTRIM', log, 'MINID', how, digits(us_of(keep)) .. '-' .. digits(n_of(keep) + 1))
  else
    redis.call('DEL', log)
    if #texts == 0 and redis.call('HEXISTS', meta, 'publisher') == 0 then
      redis.call('DEL', meta)
    end
  end
end
