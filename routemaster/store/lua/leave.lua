-- Promise: the subscriber gets no event accepted from now on; what it is owed
-- stays. Repeating it, or doing it late, changes nothing.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, version, version with which it was wanted until now (or none)
-- Reply 0 if the topic's deletion had ended the stay before, else 1
local tail = redis.call('HGET', KEYS[1], 'tail')
if not tail then return 0 end
local membership, version = tonumber(ARGV[2]), tonumber(ARGV[3])
local text = redis.call('HGET', KEYS[3], ARGV[1])
local cursor = text and parse(text)
-- closed under the version that wanted it: nobody but `delete_topic` does that. With
-- another version a join is still on its way, or a repair has left the topic already.
local was = (not cursor or cursor.version ~= tonumber(ARGV[4]) or open_span(cursor)) and 1 or 0
if cursor and cursor.version > version then return was end
if not cursor or cursor.membership < membership then
  -- kept as a mark, so that an older join that comes late is recognized
  cursor = {membership = membership, sent = 0, dropped = 0, spans = {}}
end
cursor.version = version
close(cursor, tail)
store(KEYS[3], ARGV[1], cursor)
trim(KEYS[1], KEYS[2], KEYS[3], '=')
return was
