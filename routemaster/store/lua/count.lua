-- Promise: all counters are incremented together.
-- Runs while Redis is out of memory.
-- KEYS  a hash of counters
-- ARGV  counter, increment, ...
-- Reply 1
redis.call('HDEL', KEYS[1], '') -- see store() for why first
for index = 1, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[index], ARGV[index + 1])
end
return 1
