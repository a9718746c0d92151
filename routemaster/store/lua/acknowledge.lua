-- Promise: the cursor moves forward over delivered events; each is counted once,
-- however often the call is repeated. It never moves back, and never to an event
-- that the log does not hold: if Redis lost its last writes, other events have
-- the lost IDs, and the subscriber has not received those.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, ID of the last delivered event
-- Reply {events passed, cursor or false, tail}
local tail = redis.call('HGET', KEYS[1], 'tail')
local text = redis.call('HGET', KEYS[3], ARGV[1])
local cursor = text and parse(text)
if not cursor or cursor.membership ~= tonumber(ARGV[2]) then
  return {0, text, tail}
end
if #redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3]) == 0 then return {0, text, tail} end
local passed = pass(cursor, ARGV[3])
if passed > 0 then
  cursor.sent = cursor.sent + passed
  store(KEYS[3], ARGV[1], cursor)
  -- with more subscribers the clean-up trims: finding the lowest cursor takes longer
  if redis.call('HLEN', KEYS[3]) <= 8 then trim(KEYS[1], KEYS[2], KEYS[3], '~') end
end
return {passed, format(cursor), tail}
