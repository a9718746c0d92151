-- Promise: how many events of each topic wait for the subscriber that were accepted up to a time.
-- KEYS  meta, log, cursors of each topic in turn
-- ARGV  subscriber, microseconds since the epoch
-- Reply for each topic in turn events, then number after which the cursor stands (0: none)
local reply = {}
for topic = 1, #KEYS / 3 do
  local meta, log, cursors = KEYS[3 * topic - 2], KEYS[3 * topic - 1], KEYS[3 * topic]
  local text, tail = redis.call('HGET', cursors, ARGV[1]), redis.call('HGET', meta, 'tail')
  local cursor, count, after = text and tail and parse(text), 0, 0
  if cursor and cursor.spans[1] then
    after = n_of(cursor.spans[1].after)
    local limit = last_before(log, tonumber(ARGV[2]) + 1)
    local n = math.max(limit and n_of(limit) or 0, n_of(last_gone(log, tail)))
    for _, span in ipairs(cursor.spans) do
      count = count + math.max(0, math.min(n, n_of(span.till or tail)) - n_of(span.after))
    end
  end
  reply[#reply + 1], reply[#reply + 2] = count, after
end
return reply
