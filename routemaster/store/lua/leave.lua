-- Promise: the subscriber receives no event accepted from now on; its backlog
-- remains. A repeated or late call changes nothing.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, version, version of the membership before this change (or none)
-- Reply 0 if the topic's deletion had ended the membership before, else 1
local tail = redis.call('HGET', KEYS[1], 'tail')
if not tail then return 0 end
local membership, version = tonumber(ARGV[2]), tonumber(ARGV[3])
local text = redis.call('HGET', KEYS[3], ARGV[1])
local cursor = text and parse(text)
-- Closed at the version that opened it: only `delete_topic` does that. At another
-- version a join is still under way, or a repair has already left the topic.
local was = (not cursor or cursor.version ~= tonumber(ARGV[4]) or open_span(cursor)) and 1 or 0
if cursor and cursor.version > version then return was end
if not cursor or cursor.membership < membership then
  -- stored so that a late, older join finds a later version
  cursor = new_cursor(membership)
end
cursor.version = version
close(cursor, tail)
store(KEYS[1], KEYS[3], ARGV[1], cursor)
trim(KEYS[1], KEYS[2], KEYS[3], '=')
return was
