-- Promise: some subscribers' cursors pass the events that the log does not hold any
-- more; each is counted as dropped.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of one topic
-- ARGV  the last ID to pass ('' for no limit), subscriber...
-- Reply {subscriber, events lost, ...}
local gone, losses = last_gone(KEYS[2], redis.call('HGET', KEYS[1], 'tail')), {}
if gone and ARGV[1] ~= '' and n_of(ARGV[1]) < n_of(gone) then gone = ARGV[1] end
for index = 2, #ARGV do
  local text = redis.call('HGET', KEYS[3], ARGV[index])
  local cursor = text and parse(text)
  local lost = cursor and gone and pass(cursor, gone, 'dropped') or 0
  if lost > 0 then
    store(KEYS[1], KEYS[3], ARGV[index], cursor)
    losses[#losses + 1] = ARGV[index]
    losses[#losses + 1] = lost
  end
end
return losses
