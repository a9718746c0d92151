-- Promise: a parked event that was tried again is delivered, or parked again, if the worker still
-- holds the lease; it is counted once, however often the call is repeated.
-- Runs while Redis is out of memory.
-- KEYS  lease, meta, parked, parked_order, retried of one subscriber
-- ARGV  "worker epoch", event, '' if it was delivered, else its content with the reason
-- Reply 1 if that is so now, 0 if the lease is lost
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local score = redis.call('ZSCORE', KEYS[5], ARGV[2])
if not score then return 1 end
local before, left = #(redis.call('HGET', KEYS[3], ARGV[2]) or ''), redis.call('ZCARD', KEYS[5]) - 1
local first = redis.call('ZRANGE', KEYS[5], 0, 1, 'WITHSCORES')
local oldest = first[1] ~= ARGV[2] and first[2] or first[4] or ''
redis.call('ZREM', KEYS[5], ARGV[2]) -- as the last use of this key, see store()
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[3], ARGV[2])
  redis.call('HINCRBY', KEYS[2], 'sent', 1)
else
  redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
  redis.call('ZADD', KEYS[4], score, ARGV[2])
  redis.call('HINCRBY', KEYS[2], 'parked', 1)
end
redis.call('HINCRBY', KEYS[2], 'parked_bytes', #ARGV[3] - before)
redis.call('HSET', KEYS[2], 'retried', left, 'retried_oldest', oldest)
return 1
