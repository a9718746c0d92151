-- Promise: parked events are to be delivered next, or are removed.
-- Runs while Redis is out of memory.
-- KEYS  meta, parked, parked_order, retried of one subscriber
-- ARGV  'retry' or 'drop', event...
-- Reply how many
local count, bytes = 0, tonumber(redis.call('HGET', KEYS[1], 'parked_bytes') or '0')
redis.call('HDEL', KEYS[1], '') -- see store() for why first
for index = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[3], ARGV[index])
  if score then
    count = count + 1
    redis.call('ZREM', KEYS[3], ARGV[index])
    if ARGV[1] == 'retry' then
      redis.call('ZADD', KEYS[4], score, ARGV[index])
    else
      bytes = bytes - #redis.call('HGET', KEYS[2], ARGV[index])
      redis.call('HDEL', KEYS[2], ARGV[index])
    end
  end
end
redis.call('HSET', KEYS[1], 'parked_bytes', digits(bytes), 'retried', redis.call('ZCARD', KEYS[4]))
return count
