-- Promise: an event that a cursor has passed without delivery is noted as acknowledged after all.
-- Runs while Redis is out of memory.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, number of the event
-- Reply 1 if that is so now, 0 if the topic has no cursor of the subscriber
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[1], '') -- see store()
note(KEYS[1], ARGV[1], {{'a', tonumber(ARGV[2]), tonumber(ARGV[2])}})
return 1
