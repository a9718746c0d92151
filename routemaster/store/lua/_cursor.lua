-- Put before every script of this folder: time, IDs, and the form in which a
-- cursor is kept. Model in Python: routemaster.model.EventID and Cursor.
--
--   ID      <us>-<n>: microseconds by Redis's clock, running number in the log
--   cursor  "<membership> <version> <sent> <dropped> <after>/<until> <after>/"
--
-- Refusals are error replies "RM:<CODE> ..." (routemaster.store.redis names them).

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
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

-- Ends the open span at tail; a span in which nothing is owed goes.
local function close(cursor, tail)
  local last = open_span(cursor)
  if last then
    last.till = tail
    if n_of(last.after) >= n_of(tail) then cursor.spans[#cursor.spans] = nil end
  end
end

-- Moves the cursor past an ID and all before it; how many events it passed that
-- way. It never moves back.
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

-- HDEL of nothing first: Redis 6.2 refuses a script for want of memory only at its
-- first write, and only if that write could take memory. So a cursor moves, and the
-- backlog can be trimmed, while Redis is full; on 7 `allow-oom` says the same.
-- Of nothing, for a key that is deleted must not be touched again: while a cluster
-- moves its slot to another node the script would end there, half done.
local function store(cursors, subscriber, cursor)
  redis.call('HDEL', cursors, '')
  redis.call('HSET', cursors, subscriber, format(cursor))
end

-- Removes from the log what every cursor has passed; `how` is '~' (whole nodes
-- only, cheap) or '='. A topic that was deleted goes with its last cursor. `texts` are
-- all cursors, for whoever has just deleted one: see store().
-- IDs are given, never made by Redis, so a log may be deleted and begun again.
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
