-- Promise: the cursor moves forward over delivered events; each is counted once,
-- however often the call is repeated. It never moves back, and never to an event
-- that the log never held: if Redis lost its last writes, other events have
-- the lost IDs, and the subscriber has not received those. Events that were dropped
-- while they were in flight count as sent, those dropped before it as dropped.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, ID of the last delivered event, ID of the first (or '')
-- Reply {events sent, cursor or false, tail, events found dropped}
local tail = redis.call('HGET', KEYS[1], 'tail')
local text = redis.call('HGET', KEYS[3], ARGV[1])
local cursor = text and parse(text)
if not cursor or cursor.membership ~= tonumber(ARGV[2]) or not cursor.spans[1] then
  return {0, text, tail, 0}
end
local known, lost = #redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3]) > 0, 0
local before = ARGV[4] ~= '' and n_of(ARGV[4]) - 1 or 0
local begins_later = before > n_of(cursor.spans[1].after)
if begins_later or not known then
  local gone = last_gone(KEYS[2], tail)
  if not known and (n_of(ARGV[3]) > n_of(gone) or us_of(ARGV[3]) > us_of(gone)) then
    return {0, text, tail, 0}
  end
  if begins_later then
    lost = pass(cursor, before < n_of(gone) and digits(us_of(ARGV[4])) .. '-' .. digits(before) or gone)
  end
end
local passed = pass(cursor, ARGV[3])
if passed + lost > 0 then
  cursor.sent, cursor.dropped = cursor.sent + passed, cursor.dropped + lost
  store(KEYS[3], ARGV[1], cursor)
  -- with more subscribers the clean-up trims: finding the lowest cursor takes longer
  if redis.call('HLEN', KEYS[3]) <= 8 then trim(KEYS[1], KEYS[2], KEYS[3], '~') end
end
return {passed, format(cursor), tail, lost}
