-- Promise: of each log, the last of the first so many events that only the topic's history keeps:
-- no cursor waits for them.
-- KEYS  meta, log, cursors of each topic in turn
-- ARGV  how many
-- Reply for each topic in turn an ID, or '' if there is no such event
local reply = {}
for index = 1, #KEYS / 3 do
  local meta, log, cursors = KEYS[3 * index - 2], KEYS[3 * index - 1], KEYS[3 * index]
  local entries = {}
  if (redis.call('HGET', meta, 'history') or '0') ~= '0' then
    entries = redis.call('XRANGE', log, '-', lowest_of(redis.call('HVALS', cursors)) or '+', 'COUNT', ARGV[1])
  end
  reply[index] = #entries > 0 and entries[#entries][1] or ''
end
return reply
