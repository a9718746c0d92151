-- Promise: cursors move forward over delivered events; each is counted once,
-- however often the call is repeated. They never move back, and never to an event
-- that the log never held: if Redis lost its last writes, other events have
-- the lost IDs, and the subscriber has not received those. Events that were dropped
-- while they were in flight count as sent, those dropped before it as dropped.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of each topic in turn
-- ARGV  for each topic in turn how many subscribers, then for each of them
--       subscriber, membership, ID of the last delivered event, ID of the first (or '')
-- Reply for each subscriber in turn {events sent, cursor or false, tail, events found dropped}
local reply, place = {}, 0

local function acknowledge(log, tail, text, membership, last, first)
  local cursor = text and parse(text)
  if not cursor or cursor.membership ~= tonumber(membership) or not cursor.spans[1] then
    return {0, text, tail, 0}
  end
  local known, lost = #redis.call('XRANGE', log, last, last) > 0, 0
  local before = first ~= '' and n_of(first) - 1 or 0
  local begins_later = before > n_of(cursor.spans[1].after)
  if begins_later or not known then
    local gone = last_gone(log, tail)
    if not known and (n_of(last) > n_of(gone) or us_of(last) > us_of(gone)) then
      return {0, text, tail, 0}
    end
    if begins_later then
      lost = pass(cursor, before < n_of(gone) and digits(us_of(first)) .. '-' .. digits(before) or gone)
    end
  end
  local passed = pass(cursor, last)
  cursor.sent, cursor.dropped = cursor.sent + passed, cursor.dropped + lost
  return {passed, format(cursor), tail, lost}
end

for topic = 1, #KEYS / 3 do
  local meta, log, cursors = KEYS[3 * topic - 2], KEYS[3 * topic - 1], KEYS[3 * topic]
  local tail, moved = redis.call('HGET', meta, 'tail'), false
  local count = tonumber(ARGV[place + 1])
  for first = place + 2, place + 4 * count - 2, 4 do
    local subscriber, membership, last_id, first_id = unpack(ARGV, first, first + 3)
    local text = redis.call('HGET', cursors, subscriber)
    local answer = acknowledge(log, tail, text, membership, last_id, first_id)
    if answer[1] + answer[4] > 0 then
      if not moved then redis.call('HDEL', cursors, '') end -- see store() for why first
      redis.call('HSET', cursors, subscriber, answer[2])
      moved = true
    end
    reply[#reply + 1] = answer
  end
  place = place + 1 + 4 * count
  -- with more subscribers the clean-up trims: finding the lowest cursor takes longer
  if moved and redis.call('HLEN', cursors) <= 8 then trim(meta, log, cursors, '~') end
end
return reply
