-- Promise: an ended membership is removed, and its counts are added to the
-- subscriber's once; a subscriber without subscription and memberships is removed.
-- A membership that has changed since the caller read it stays as it is.
-- KEYS  lease, meta, topics of one subscriber
-- ARGV  for each membership in turn: topic, the membership as the caller read it,
--       its events sent, its events dropped
-- Reply {1 if the subscriber was removed, else 0; topics whose membership was removed...}
local sent, dropped, reply, left = 0, 0, {0}, redis.call('HLEN', KEYS[3])
for index = 1, #ARGV, 4 do
  local topic, membership = ARGV[index], ARGV[index + 1]
  if redis.call('HGET', KEYS[3], topic) == membership then
    reply[#reply + 1] = topic
    if string.match(membership, '%a+$') ~= 'gone' then
      sent, dropped = sent + tonumber(ARGV[index + 2]), dropped + tonumber(ARGV[index + 3])
    end
  end
end
local exists = redis.call('HEXISTS', KEYS[2], 'callback') == 1
if not exists and left == #reply - 1 then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  reply[1] = 1
  return reply
end
for index = 2, #reply do redis.call('HDEL', KEYS[3], reply[index]) end -- after it was read, see store()
if exists and sent > 0 then redis.call('HINCRBY', KEYS[2], 'sent', digits(sent)) end
if exists and dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', digits(dropped)) end
return reply
