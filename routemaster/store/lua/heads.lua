-- Promise: the first event of each log, and the last of its first so many.
-- KEYS  log of each topic in turn
-- ARGV  how many
-- Reply for each log in turn {ID of its first event, ID of the last of that many} or {} if it is empty
local reply = {}
for index, log in ipairs(KEYS) do
  local entries = redis.call('XRANGE', log, '-', '+', 'COUNT', ARGV[1])
  reply[index] = #entries > 0 and {entries[1][1], entries[#entries][1]} or {}
end
return reply
