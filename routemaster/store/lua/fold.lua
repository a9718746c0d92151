-- Promise: a stay that is over leaves nothing but its count, and is counted once; a
-- subscriber that is gone and has no stay left leaves nothing at all. A stay of which
-- the client has spoken since the caller judged it is left alone.
-- KEYS  lease, meta, topics of one subscriber
-- ARGV  for each stay in turn: topic, stay as the caller saw it, events sent in it,
--       events dropped
-- Reply {1 if nothing is left of the subscriber, else 0; topics whose stay was ended...}
local sent, dropped, reply = 0, 0, {0}
for index = 1, #ARGV, 4 do
  local topic, stay = ARGV[index], ARGV[index + 1]
  if redis.call('HGET', KEYS[3], topic) == stay then
    redis.call('HDEL', KEYS[3], topic)
    reply[#reply + 1] = topic
    if string.match(stay, '%a+$') ~= 'gone' then
      sent, dropped = sent + tonumber(ARGV[index + 2]), dropped + tonumber(ARGV[index + 3])
    end
  end
end
if redis.call('HEXISTS', KEYS[2], 'callback') == 1 then
  if sent > 0 then redis.call('HINCRBY', KEYS[2], 'sent', digits(sent)) end
  if dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', digits(dropped)) end
elseif redis.call('HLEN', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  reply[1] = 1
end
return reply
