-- Promise: the subscriber gets every event accepted from now on; what it is
-- already owed stays. Repeating it, or doing it late, changes nothing: a stay that
-- was closed since by the topic's deletion is not opened again. Runs while Redis is
-- full: that the subscription is taken was decided by `configure`.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, version
-- Reply 1 if joined, 0 if this version or a later one has spoken already
-- Codes NOTOPIC
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail')
if not known[1] then
  return redis.error_reply('RM:NOTOPIC no such topic')
end
local membership, version = tonumber(ARGV[2]), tonumber(ARGV[3])
local text = redis.call('HGET', KEYS[3], ARGV[1])
local cursor = text and parse(text)
if cursor and cursor.version >= version then return 0 end
if not cursor or cursor.membership < membership then
  cursor = {membership = membership, sent = 0, dropped = 0, spans = {}}
end
cursor.version = version
if not open_span(cursor) then
  local last = cursor.spans[#cursor.spans]
  if last and last.till == known[2] then
    last.till = nil
  else
    cursor.spans[#cursor.spans + 1] = {after = known[2]}
  end
end
store(KEYS[3], ARGV[1], cursor)
return 1
