-- Promise: cursors move forward over delivered events; each is counted once,
-- however often the call is repeated. They never move back, and never to an event
-- that the log never held: if Redis lost its last writes, other events have
-- the lost IDs, and the subscriber has not received those. Nor if the cursor was
-- moved back since the events were read. Events that were dropped
-- while they were in flight count as sent, those dropped before it as dropped.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of each topic in turn
-- ARGV  for each topic in turn how many subscribers, then for each of them subscriber, membership,
--       ID of the last delivered event, ID of the first (or ''), rewinds of the cursor when they were read
-- Reply for each subscriber in turn {events sent, cursor or false, tail, events found dropped}
local reply, place = {}, 0

-- Subscribers of one topic mostly acknowledge the same batches: each ID is read once.
local numbers = {}
local function n_of_known(id)
  local n = numbers[id]
  if not n then
    n = n_of(id)
    numbers[id] = n
  end
  return n
end

local function acknowledge(log, tail, text, membership, last, first, rewinds, known)
  -- most cursors have one open span, no count but `sent`, and begin where the batch does
  local id, version, sent, dropped, after = string.match(text or '', '^(%d+) (%d+) (%d+) (%d+) ([%d%-]+)/$')
  if id == membership and rewinds == '0' and known and (first == '' or n_of_known(first) - 1 <= n_of_known(after)) then
    local passed = n_of_known(last) - n_of_known(after)
    if passed <= 0 then return {0, text, tail, 0} end
    return {passed, id .. ' ' .. version .. ' ' .. digits(sent + passed) .. ' ' .. dropped .. ' ' .. last .. '/', tail, 0}
  end
  local cursor = text and parse(text)
  if not cursor or cursor.membership ~= tonumber(membership) or not cursor.spans[1]
    or cursor.rewinds ~= tonumber(rewinds) then
    return {0, text, tail, 0}
  end
  local lost = 0
  local before = first ~= '' and n_of(first) - 1 or 0
  local begins_later = before > n_of(cursor.spans[1].after)
  if begins_later or not known then
    local gone = last_gone(log, tail)
    if not known and (n_of(last) > n_of(gone) or us_of(last) > us_of(gone)) then
      return {0, text, tail, 0}
    end
    if begins_later then
      lost = pass(cursor, before < n_of(gone) and digits(us_of(first)) .. '-' .. digits(before) or gone, 'dropped')
    end
  end
  local passed = pass(cursor, last, 'sent')
  return {passed, format(cursor), tail, lost}, cursor.cuts
end

for topic = 1, #KEYS / 3 do
  local meta, log, cursors = KEYS[3 * topic - 2], KEYS[3 * topic - 1], KEYS[3 * topic]
  local count, names, known, changed, noted = tonumber(ARGV[place + 1]), {}, {}, {}, {}
  for index = 1, count do names[index] = ARGV[place + 5 * index - 3] end
  local tail, texts, current = redis.call('HGET', meta, 'tail'), redis.call('HMGET', cursors, unpack(names)), {}
  for index, name in ipairs(names) do current[name] = texts[index] end
  for index, name in ipairs(names) do
    local membership, last, first, rewinds = unpack(ARGV, place + 5 * index - 2, place + 5 * index + 1)
    if known[last] == nil then known[last] = #redis.call('XRANGE', log, last, last) > 0 end
    local answer, cuts = acknowledge(log, tail, current[name], membership, last, first, rewinds, known[last])
    if answer[1] + answer[4] > 0 then
      current[name] = answer[2]
      changed[#changed + 1], changed[#changed + 2] = name, answer[2]
      if cuts then noted[#noted + 1] = {name, cuts} end
    end
    reply[#reply + 1] = answer
  end
  place = place + 1 + 5 * count
  if #changed > 0 then
    redis.call('HDEL', cursors, '') -- see store() for why first
    redis.call('HSET', cursors, unpack(changed))
    for _, each in ipairs(noted) do note(meta, each[1], each[2]) end
    -- with more subscribers the clean-up trims: finding the lowest cursor takes longer
    if redis.call('HLEN', cursors) <= 8 then trim(meta, log, cursors, '~') end
  end
end
return reply
