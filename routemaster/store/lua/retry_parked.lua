-- Promise: parked events are to be delivered next, or are removed.
-- Runs while Redis is out of memory.
-- KEYS  meta, parked, parked_order, retried of one subscriber
-- ARGV  'retry' or 'drop', event...
-- Reply how many
local events, scores, bytes = {}, {}, tonumber(redis.call('HGET', KEYS[1], 'parked_bytes') or '0')
for index = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[3], ARGV[index])
  if score then
    events[#events + 1] = ARGV[index]
    scores[#scores + 1], scores[#scores + 2] = score, ARGV[index]
    if ARGV[1] == 'drop' then bytes = bytes - #redis.call('HGET', KEYS[2], ARGV[index]) end
  end
end
if #events == 0 then return 0 end
-- each key that may become empty is used once, see store()
redis.call('ZREM', KEYS[3], unpack(events))
if ARGV[1] == 'retry' then
  redis.call('ZADD', KEYS[4], unpack(scores))
  local oldest = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
  redis.call('HSET', KEYS[1], 'retried', redis.call('ZCARD', KEYS[4]), 'retried_oldest', oldest)
else
  redis.call('HDEL', KEYS[2], unpack(events))
  redis.call('HSET', KEYS[1], 'parked_bytes', digits(bytes))
end
return #events
