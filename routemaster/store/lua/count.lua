-- Promise: all counters grow together. Runs while Redis is full.
-- KEYS  a hash of counters
-- ARGV  counter, by how much, ...
-- Reply 1
redis.call('HDEL', KEYS[1], '') -- see store() for why first
for index = 1, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[index], ARGV[index + 1])
end
return 1
