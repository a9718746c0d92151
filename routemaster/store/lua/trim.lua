-- Promise: the log holds no event that every cursor has passed.
-- KEYS  meta, log, cursors of one topic
-- ARGV  none
-- Reply {1 if meta exists, else 0; subscriber, cursor, ...}
trim(KEYS[1], KEYS[2], KEYS[3], '=')
local reply = redis.call('HGETALL', KEYS[3])
table.insert(reply, 1, redis.call('EXISTS', KEYS[1]))
return reply
