-- Promise: the log holds no event that every cursor has passed.
-- KEYS  meta, log, cursors of one topic
-- ARGV  none
-- Reply {tail or false, {subscriber, cursor, ...}, the ID up to which the log holds no event any more,
--       publisher or ''}
trim(KEYS[1], KEYS[2], KEYS[3], '=')
local tail = redis.call('HGET', KEYS[1], 'tail')
return {tail, redis.call('HGETALL', KEYS[3]), last_gone(KEYS[2], tail),
  redis.call('HGET', KEYS[1], 'publisher') or ''}
