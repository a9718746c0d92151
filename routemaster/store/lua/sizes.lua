-- Promise: an estimate of the memory that each log takes, from a few of its nodes.
-- KEYS  log of each topic in turn
-- ARGV  none
-- Reply {bytes, ...}
local reply = {}
for index, log in ipairs(KEYS) do
  reply[index] = redis.call('MEMORY', 'USAGE', log) or 0
end
return reply
