-- Promise: the topic's name is free and no subscription to it is left; the
-- backlog remains.
-- KEYS  meta, log, cursors of one topic
-- ARGV  publisher ('' for root, who may delete any topic)
-- Reply 1
-- Codes NOTOPIC, NOTYOURS
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail')
if not known[1] then
  return redis.error_reply('RM:NOTOPIC no such topic')
end
if ARGV[1] ~= '' and known[1] ~= ARGV[1] then
  return redis.error_reply('RM:NOTYOURS another client publishes this topic')
end
redis.call('HDEL', KEYS[1], 'publisher', 'base')
local all = redis.call('HGETALL', KEYS[3])
for index = 1, #all, 2 do
  local cursor = parse(all[index + 1])
  if open_span(cursor) then
    close(cursor, known[2])
    store(KEYS[3], all[index], cursor)
  end
end
trim(KEYS[1], KEYS[2], KEYS[3], '=')
return 1
