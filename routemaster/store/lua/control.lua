-- Promise: deliveries to a subscriber are paused or resumed, or its pause after failures ends.
-- Runs while Redis is out of memory.
-- KEYS  meta of one subscriber
-- ARGV  'pause', 'resume', 'retry' or 'touch' (only the version grows: the worker reads everything again)
-- Reply version
-- Codes NOTSUBSCRIBED
local known = redis.call('HMGET', KEYS[1], 'version', 'callback')
if not known[2] then return redis.error_reply('RM:NOTSUBSCRIBED not subscribed') end
local version = digits(math.max(clock(), tonumber(known[1]) + 1))
redis.call('HDEL', KEYS[1], '') -- see store() for why first
if ARGV[1] == 'resume' then redis.call('HDEL', KEYS[1], 'paused', 'retry_at') end
if ARGV[1] == 'retry' then redis.call('HDEL', KEYS[1], 'retry_at') end
if ARGV[1] == 'pause' then redis.call('HSET', KEYS[1], 'paused', '1') end
redis.call('HSET', KEYS[1], 'version', version)
return version
