-- Promise: an ended membership is removed, and its counts are added to the
-- subscriber's once; a subscriber without subscription and memberships is removed.
-- A membership that has changed since the caller read it stays as it is.
-- KEYS  lease, meta, topics of one subscriber, and its other keys
-- ARGV  for each membership in turn: topic, the membership as the caller read it,
--       its events sent, dropped, expired, skipped, parked
-- Reply {1 if the subscriber was removed, else 0; topics whose membership was removed...}
local KINDS = {'sent', 'dropped', 'expired', 'skipped', 'parked'}
local counts, reply, left = {0, 0, 0, 0, 0}, {0}, redis.call('HLEN', KEYS[3])
for index = 1, #ARGV, 7 do
  local topic, membership = ARGV[index], ARGV[index + 1]
  if redis.call('HGET', KEYS[3], topic) == membership then
    reply[#reply + 1] = topic
    if string.match(membership, '%a+$') ~= 'gone' then
      for kind = 1, #KINDS do counts[kind] = counts[kind] + tonumber(ARGV[index + 1 + kind]) end
    end
  end
end
local exists = redis.call('HEXISTS', KEYS[2], 'callback') == 1
if not exists and left == #reply - 1 then
  redis.call('DEL', unpack(KEYS))
  reply[1] = 1
  return reply
end
for index = 2, #reply do redis.call('HDEL', KEYS[3], reply[index]) end -- after it was read, see store()
for kind, count in ipairs(counts) do
  if exists and count > 0 then redis.call('HINCRBY', KEYS[2], KINDS[kind], digits(count)) end
end
return reply
