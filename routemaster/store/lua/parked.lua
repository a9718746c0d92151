-- Promise: parked events, in the order of their acceptance, and their contents.
-- KEYS  parked, the order of those wanted
-- ARGV  event after which to begin or '', microseconds of its acceptance, most events, most bytes;
--       if that event is there no more, those of its microsecond come again
-- Reply {event, content, ...}
local rank = 0
if ARGV[1] ~= '' then
  rank = redis.call('ZRANK', KEYS[2], ARGV[1])
  rank = rank and rank + 1 or redis.call('ZCOUNT', KEYS[2], '-inf', '(' .. ARGV[2])
end
local reply, size = {}, 0
for _, event in ipairs(redis.call('ZRANGE', KEYS[2], rank, rank + tonumber(ARGV[3]) - 1)) do
  local content = redis.call('HGET', KEYS[1], event)
  if content and size < tonumber(ARGV[4]) then
    reply[#reply + 1], reply[#reply + 2] = event, content
    size = size + #content
  end
end
return reply
