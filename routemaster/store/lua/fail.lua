-- Promise: a failed attempt is recorded if the worker still holds the lease under
-- which it was made, and if the subscription still has the callback and uuid that
-- were tried. A repetition changes nothing.
-- Runs while Redis is out of memory.
-- KEYS  lease, meta of one subscriber
-- ARGV  worker, epoch, failures in a row with this one, most events in the next batch (0: no limit),
--       pause in microseconds, error, callback, uuid (callback '': whichever)
-- Reply 1 if it is recorded, or 0
local known = redis.call('HMGET', KEYS[2], 'version', 'callback', 'uuid')
if not known[1] or redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then return 0 end
if ARGV[7] ~= '' and (known[2] ~= ARGV[7] or known[3] ~= ARGV[8]) then return 0 end
local now = clock()
redis.call('HDEL', KEYS[2], 'failures', 'retry_at', 'last_attempt', 'batch_limit') -- see store() for why first
redis.call('HSET', KEYS[2], 'failures', ARGV[3], 'last_attempt', digits(now), 'last_error', ARGV[6],
  'retry_at', digits(now + tonumber(ARGV[5])))
if ARGV[4] ~= '0' then redis.call('HSET', KEYS[2], 'batch_limit', ARGV[4]) end
return 1
