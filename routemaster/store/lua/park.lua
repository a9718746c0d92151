-- Promise: an event is among a subscriber's parked events, which are bounded, if the worker still
-- holds the lease. A repetition changes nothing.
-- KEYS  lease, meta, parked, parked_order of one subscriber
-- ARGV  "worker epoch", event, microseconds of its acceptance, content, most events, most bytes
-- Reply 1 if it is there, 0 if the lease is lost, -1 if there are too many
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then return 1 end
local bytes = tonumber(redis.call('HGET', KEYS[2], 'parked_bytes') or '0') + #ARGV[4]
if redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[5]) or bytes > tonumber(ARGV[6]) then return -1 end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[2])
redis.call('HSET', KEYS[2], 'parked_bytes', digits(bytes))
return 1
