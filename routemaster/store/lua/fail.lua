-- Promise: a failed attempt is recorded if the worker still holds the lease under
-- which it was made, and if the subscription still has the callback and uuid that
-- were tried. A repetition changes nothing.
-- Runs while Redis is out of memory.
-- KEYS  lease, meta, attempts of one subscriber
-- ARGV  worker, epoch, failures in a row with this one, most events in the next batch (0: no limit),
--       pause in microseconds, error, callback, uuid (callback '': whichever), refusals in a row of the
--       oldest event alone, report for the list of attempts, the most reports
-- Reply 1 if it is recorded, or 0
local known = redis.call('HMGET', KEYS[2], 'version', 'callback', 'uuid')
if not known[1] or redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then return 0 end
if ARGV[7] ~= '' and (known[2] ~= ARGV[7] or known[3] ~= ARGV[8]) then return 0 end
local now = clock()
redis.call('HDEL', KEYS[2], 'failures', 'retry_at', 'last_attempt', 'batch_limit', 'refusals') -- see store() for why first
redis.call('HSET', KEYS[2], 'failures', ARGV[3], 'last_attempt', digits(now), 'last_error', ARGV[6],
  'retry_at', digits(now + tonumber(ARGV[5])))
if ARGV[4] ~= '0' then redis.call('HSET', KEYS[2], 'batch_limit', ARGV[4]) end
if ARGV[9] ~= '0' then redis.call('HSET', KEYS[2], 'refusals', ARGV[9]) end
if ARGV[10] ~= '' and redis.call('LINDEX', KEYS[3], 0) ~= ARGV[10] then
  redis.call('LPUSH', KEYS[3], ARGV[10])
  redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[11]) - 1)
end
return 1
