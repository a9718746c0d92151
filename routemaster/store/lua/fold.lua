-- Promise: a stay that is over leaves nothing but its count, and is counted once; a
-- subscriber that is gone and has no stay left leaves nothing at all. A stay of which
-- the client has spoken since the caller judged it is left alone.
-- KEYS  lease, meta, topics of one subscriber
-- ARGV  for each stay in turn: topic, stay as the caller saw it, events sent in it,
--       events dropped
-- Reply {1 if nothing is left of the subscriber, else 0; topics whose stay was ended...}
local sent, dropped, reply, left = 0, 0, {0}, redis.call('HLEN', KEYS[3])
for index = 1, #ARGV, 4 do
  local topic, stay = ARGV[index], ARGV[index + 1]
  if redis.call('HGET', KEYS[3], topic) == stay then
    reply[#reply + 1] = topic
    if string.match(stay, '%a+$') ~= 'gone' then
      sent, dropped = sent + tonumber(ARGV[index + 2]), dropped + tonumber(ARGV[index + 3])
    end
  end
end
local lives = redis.call('HEXISTS', KEYS[2], 'callback') == 1
if not lives and left == #reply - 1 then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  reply[1] = 1
  return reply
end
for index = 2, #reply do redis.call('HDEL', KEYS[3], reply[index]) end -- after it was read, see store()
if lives and sent > 0 then redis.call('HINCRBY', KEYS[2], 'sent', digits(sent)) end
if lives and dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', digits(dropped)) end
return reply
