-- Put before every script of this folder: time, IDs, and the form in which a
-- cursor is kept. Model in Python: routemaster.model.EventID and Cursor.
--
--   ID      <us>-<n>: microseconds by Redis's clock, running number in the log
--   cursor  "<membership> <version> <sent> <dropped> <after>/<until> <after>/"
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

local function parse(text)
  local cursor, field = {spans = {}}, 0
  for word in string.gmatch(text, '%S+') do
    field = field + 1
    if field == 1 then cursor.membership = tonumber(word)
    elseif field == 2 then cursor.version = tonumber(word)
    elseif field == 3 then cursor.sent = tonumber(word)
    elseif field == 4 then cursor.dropped = tonumber(word)
    else
      local after, till = string.match(word, '^([^/]*)/(.*)$')
      cursor.spans[#cursor.spans + 1] = {after = after, till = till ~= '' and till or nil}
    end
  end
  return cursor
end

local function format(cursor)
  local words = {digits(cursor.membership), digits(cursor.version), digits(cursor.sent), digits(cursor.dropped)}
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

-- Moves the cursor past an ID, never back; returns the number of events passed.
local function pass(cursor, id)
  local n, passed, left = n_of(id), 0, {}
  for _, span in ipairs(cursor.spans) do
    local after = n_of(span.after)
    if span.till and n_of(span.till) <= n then
      passed = passed + n_of(span.till) - after
    else
      if after < n then
        passed = passed + n - after
        span.after = id
      end
      left[#left + 1] = span
    end
  end
  cursor.spans = left
  return passed
end

-- The ID up to which the log holds no event any more: the tail if it is empty. What a
-- cursor has not passed up to there was dropped.
local function last_gone(log, tail)
  local head = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  return head and digits(us_of(head[1])) .. '-' .. digits(n_of(head[1]) - 1) or tail
end

-- HDEL first: Redis 6.2 refuses a script when out of memory only at its first write,
-- and only if that command may take memory. So a cursor moves and the log is trimmed
-- while Redis is out of memory; Redis 7 has the flag `allow-oom` for this.
-- HDEL of an empty field, because a deleted key must not be used again: while a
-- cluster moves its slot to another node, the script would end there half done.
local function store(cursors, subscriber, cursor)
  redis.call('HDEL', cursors, '')
  redis.call('HSET', cursors, subscriber, format(cursor))
end

-- Removes the events that every cursor has passed; `how` is '~' (whole stream nodes
-- only, cheap) or '='. A deleted topic's meta is removed with its last cursor. `texts`:
-- all cursors, if the caller has just deleted one, see store().
-- Scripts set the IDs, not Redis, so a deleted log continues with the next number.
local function trim(meta, log, cursors, how, texts)
  local lowest, lowest_n
  texts = texts or redis.call('HVALS', cursors)
  for _, text in ipairs(texts) do
    local first = string.match(text, '^%S+ %S+ %S+ %S+ ([^/]+)/')
    if first then
      local n = n_of(first)
      if not lowest_n or n < lowest_n then lowest, lowest_n = first, n end
    end
  end
  if lowest then
    redis.call('XTRIM', log, 'MINID', how, digits(us_of(lowest)) .. '-' .. digits(lowest_n + 1))
  else
    redis.call('DEL', log)
    if #texts == 0 and redis.call('HEXISTS', meta, 'publisher') == 0 then
      redis.call('DEL', meta)
    end
  end
end
