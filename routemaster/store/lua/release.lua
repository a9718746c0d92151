-- Promise: the lease is deleted if this worker holds it; a hint goes out.
-- Runs while Redis is out of memory.
-- KEYS  lease of one subscriber
-- ARGV  worker, epoch, wake-up channel, subscriber
-- Reply 1 if the worker held it, else 0
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', ARGV[3], 's ' .. ARGV[4])
return 1
