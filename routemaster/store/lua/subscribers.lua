-- Promise: the state and memberships of some subscribers, as one snapshot.
-- KEYS  meta, topics of each subscriber in turn
-- ARGV  none
-- Reply {fields of meta, memberships by topic, ...}
local reply = {}
for index, key in ipairs(KEYS) do
  reply[index] = redis.call('HGETALL', key)
end
return reply
