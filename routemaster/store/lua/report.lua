-- Promise: what was reported is on record. Runs while Redis is full.
-- KEYS  a hash of counters as last reported
-- ARGV  counter, value, ...
-- Reply 1
redis.call('HDEL', KEYS[1], '') -- see store() for why first
for index = 1, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
end
return 1
