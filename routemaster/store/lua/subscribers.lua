-- Promise: what each of some subscribers has and wants, in one view.
-- KEYS  meta, topics of each subscriber in turn
-- ARGV  none
-- Reply {fields of meta, stays by topic, ...}
local reply = {}
for index, key in ipairs(KEYS) do
  reply[index] = redis.call('HGETALL', key)
end
return reply
