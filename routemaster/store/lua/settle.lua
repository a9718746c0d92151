-- Promise: the outcome of an attempt is stored if the worker still holds the
-- lease under which it was made.
-- Runs while Redis is out of memory.
-- KEYS  lease, meta of one subscriber
-- ARGV  worker, epoch, pause in microseconds ('' after a success), error
-- Reply failures in a row, or -1 if the lease is lost
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] or redis.call('EXISTS', KEYS[2]) == 0 then
  return -1
end
local now = clock()
local failures = tonumber(redis.call('HGET', KEYS[2], 'failures') or '0')
redis.call('HDEL', KEYS[2], 'failures', 'retry_at', 'last_attempt') -- see store() for why first
if ARGV[3] == '' then
  redis.call('HSET', KEYS[2], 'failures', '0', 'last_attempt', digits(now), 'last_success', digits(now))
  return 0
end
failures = failures + 1
redis.call('HSET', KEYS[2], 'failures', digits(failures), 'last_attempt', digits(now),
  'last_error', ARGV[4], 'retry_at', digits(now + tonumber(ARGV[3])))
return failures
