-- Promise: the topic's name is free; the backlog remains. No subscription to it is left
-- but those that await missing topics: these receive what is published under the name again.
-- KEYS  meta, log, cursors of one topic
-- ARGV  publisher ('' for root, who may delete any topic)
-- Reply the publisher
-- Codes NOTOPIC, NOTYOURS
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail')
if not known[1] then
  return redis.error_reply('RM:NOTOPIC no such topic')
end
if ARGV[1] ~= '' and known[1] ~= ARGV[1] then
  return redis.error_reply('RM:NOTYOURS another client publishes this topic')
end
redis.call('HDEL', KEYS[1], 'publisher', 'base', 'history', 'history_events', 'max_data')
local all = redis.call('HGETALL', KEYS[3])
for index = 1, #all, 2 do
  local cursor = parse(all[index + 1])
  if open_span(cursor) and redis.call('HEXISTS', KEYS[1], 'awaits:' .. all[index]) == 0 then
    close(cursor, known[2])
    store(KEYS[1], KEYS[3], all[index], cursor)
  end
end
trim(KEYS[1], KEYS[2], KEYS[3], '=')
return known[1]
