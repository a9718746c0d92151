-- Promise: a worker counts as live no more, and all workers hear of it. Runs while
-- Redis is full.
-- KEYS  workers
-- ARGV  worker, wake-up channel
-- Reply 1 if it did
local lived = redis.call('ZREM', KEYS[1], ARGV[1])
if lived == 1 then redis.call('PUBLISH', ARGV[2], 'w ' .. ARGV[1] .. ' off') end
return lived
