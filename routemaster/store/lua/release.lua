-- Promise: a lease of ours is given back; another's is left alone.
-- Runs while Redis is full.
-- KEYS  lease of one subscriber
-- ARGV  worker, epoch, wake-up channel, subscriber
-- Reply 1 if it was ours
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[3], 's ' .. ARGV[4])
return 1
