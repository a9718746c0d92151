-- Promise: the oldest events up to a time are removed from the log, at most so many.
-- No cursor moves: `count_drops` and `acknowledge` count the events as dropped, or,
-- if they were in flight, as sent.
-- Runs while Redis is out of memory.
-- KEYS  log of one topic
-- ARGV  the last ID to drop, or microseconds since the epoch, most events
-- Reply events removed
local entries = redis.call('XRANGE', KEYS[1], '-', ARGV[1], 'COUNT', ARGV[2])
if #entries > 0 then
  local last = entries[#entries][1]
  redis.call('XTRIM', KEYS[1], 'MINID', '=', digits(us_of(last)) .. '-' .. digits(n_of(last) + 1))
end
return #entries
