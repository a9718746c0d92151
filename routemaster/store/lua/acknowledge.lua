-- Promise: the cursor moves forward over events that were delivered, each
-- counted once however often this is repeated; it never moves back, and never
-- by an event that the log does not hold: if Redis lost its last writes others
-- have that event's number, and who was sent the lost ones was not sent these.
-- Runs while Redis is full.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, ID of the last event delivered
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
  -- with many subscribers finding the lowest cursor is left to the sweep
  if redis.call('HLEN', KEYS[3]) <= 8 then trim(KEYS[1], KEYS[2], KEYS[3], '~') end
end
return {passed, format(cursor), tail}
