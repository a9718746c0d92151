-- Promise: of what was accepted up to a moment, the oldest events are gone from the
-- log, at most so many; each subscriber that was owed one has it counted as
-- dropped. Runs while Redis is full.
-- KEYS  meta, log, cursors of one topic
-- ARGV  microseconds since the epoch, most events
-- Reply {events gone from the log, {subscriber, events lost, ...}}
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
