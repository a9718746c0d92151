-- Promise: the subscriber receives the events of a topic from a time on again, as far as the topic's
-- history reaches; what is acknowledged by an attempt that is under way does not count.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, microseconds since the epoch
-- Reply events that come again
local text, tail = redis.call('HGET', KEYS[3], ARGV[1]), redis.call('HGET', KEYS[1], 'tail')
local cursor = text and tail and parse(text)
if not cursor or not open_span(cursor) then return 0 end
local start, first, before = place_before(KEYS[1], KEYS[2], tail, tonumber(ARGV[2])), n_of(cursor.spans[1].after), 0
if n_of(start) >= first then return 0 end
for _, span in ipairs(cursor.spans) do before = before + n_of(span.till or tail) - n_of(span.after) end
cursor.spans, cursor.rewinds = {{after = start}}, cursor.rewinds + 1
store(KEYS[1], KEYS[3], ARGV[1], cursor)
forget_cuts(KEYS[1], ARGV[1], n_of(start))
return n_of(tail) - n_of(start) - before
