-- Promise: a cursor passes events that are not to be delivered; each is counted once, as dropped if
-- the log does not hold it any more, else as the kind given.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, kind (expired, skipped, parked), and up to where:
--         'tail'        all
--         'before <us>' what was accepted before that time
--         'age <us>'    what was accepted longer ago
--         'id <ID>'     that event alone, if the membership is <membership> and it is the next event
--         'oldest <count>' so many, if the cursor is still after number <after>
--       then membership or after, for the last two
-- Reply {events passed, events found dropped}
local text, tail = redis.call('HGET', KEYS[3], ARGV[1]), redis.call('HGET', KEYS[1], 'tail')
local cursor = text and tail and parse(text)
if not cursor or not cursor.spans[1] then return {0, 0} end
local log, kind = KEYS[2], ARGV[2]
local how, value = string.match(ARGV[3], '^(%S+) ?(%S*)$')
local limit
if how == 'tail' then limit = tail
elseif how == 'before' then limit = last_before(log, tonumber(value))
elseif how == 'age' then limit = last_before(log, clock() - tonumber(value))
elseif how == 'oldest' and n_of(cursor.spans[1].after) == tonumber(ARGV[4]) then
  local left = tonumber(value)
  for _, span in ipairs(cursor.spans) do
    local after, till = n_of(span.after), n_of(span.till or tail)
    local target = math.min(after + left, till)
    local entry = left > 0 and id_at(log, target)
    if entry and n_of(entry) <= target then limit = entry end -- else the log does not hold it any more
    left = left - (till - after)
  end
end
local dropped = pass(cursor, last_gone(log, tail), 'dropped')
-- a cursor that was moved back since, or a log that lost its last writes, has other events there
if how == 'id' and cursor.membership == tonumber(ARGV[4]) and cursor.spans[1]
  and n_of(cursor.spans[1].after) == n_of(value) - 1 and #redis.call('XRANGE', log, value, value) > 0 then
  limit = value
end
local passed = limit and pass(cursor, limit, kind) or 0
if dropped + passed > 0 then store(KEYS[1], KEYS[3], ARGV[1], cursor) end
return {passed, dropped}
