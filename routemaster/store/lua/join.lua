-- Promise: the subscriber receives every event accepted from now on, or from a place
-- in the topic's history on; its backlog remains. A repeated or late call changes nothing: it does not reopen a membership
-- that the topic's deletion has ended. A topic that does not exist is awaited on request: its
-- first event will be the first in the log, and its deletion does not end the membership.
-- Runs while Redis is out of memory: `configure` has accepted the subscription.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, version, 'await' or '', microseconds since the epoch where to begin or ''
-- Reply 1 if joined, 0 if the cursor has this version or a later one
-- Codes NOTOPIC
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail')
if not known[1] and ARGV[4] == '' then
  return redis.error_reply('RM:NOTOPIC no such topic')
end
local membership, version = tonumber(ARGV[2]), tonumber(ARGV[3])
local text = redis.call('HGET', KEYS[3], ARGV[1])
local cursor = text and parse(text)
if cursor and cursor.version >= version then return 0 end
local fresh = not cursor or cursor.membership < membership
if fresh then
  cursor = new_cursor(membership)
  redis.call('HDEL', KEYS[1], 'cuts:' .. ARGV[1])
end
cursor.version = version
local tail = known[2] or digits(clock()) .. '-0'
redis.call('HDEL', KEYS[1], 'awaits:' .. ARGV[1]) -- see store() for why first
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'tail', tail, 'awaits:' .. ARGV[1], '1') end
if not open_span(cursor) then
  local last, start = cursor.spans[#cursor.spans], tail
  if ARGV[5] ~= '' then start = place_before(KEYS[1], KEYS[2], tail, tonumber(ARGV[5])) end
  if last and n_of(last.till) >= n_of(start) then
    last.till = nil
  else
    cursor.spans[#cursor.spans + 1] = {after = start}
    local gap = last and n_of(last.till) + 1 or 1
    if n_of(start) >= gap then
      forget_cuts(KEYS[1], ARGV[1], n_of(start))
      cursor.cuts = {{(last or fresh) and 'n' or 'u', gap, n_of(start)}}
    end
  end
end
store(KEYS[1], KEYS[3], ARGV[1], cursor)
return 1
