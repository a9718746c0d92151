-- Promise: the worker is not registered any more; a hint goes out.
-- Runs while Redis is out of memory.
-- KEYS  workers
-- ARGV  worker, wake-up channel
-- Reply 1 if it was registered, else 0
local lived = redis.call('ZREM', KEYS[1], ARGV[1])
if lived == 1 then redis.pcall('PUBLISH', ARGV[2], 'w ' .. ARGV[1] .. ' off') end
return lived
