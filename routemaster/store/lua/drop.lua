-- Promise: the oldest events up to a time are removed from the log, at most so
-- many; each is counted as dropped for every subscriber that had it in its backlog.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of one topic
-- ARGV  microseconds since the epoch, most events
-- Reply {events removed from the log, {subscriber, events lost, ...}}
local cut, count
for index, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', ARGV[1], 'COUNT', ARGV[2])) do
  cut, count = entry[1], index
end
if not cut then return {0, {}} end
local losses, all = {}, redis.call('HGETALL', KEYS[3])
for index = 1, #all, 2 do
  local cursor = parse(all[index + 1])
  local lost = pass(cursor, cut)
  if lost > 0 then
    cursor.dropped = cursor.dropped + lost
    store(KEYS[3], all[index], cursor)
    losses[#losses + 1] = all[index]
    losses[#losses + 1] = lost
  end
end
trim(KEYS[1], KEYS[2], KEYS[3], '=')
return {count, losses}
