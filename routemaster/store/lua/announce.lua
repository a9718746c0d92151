-- Promise: the worker is registered until its time to live ends; a hint goes out
-- if it is new.
-- Runs while Redis is out of memory.
-- KEYS  workers
-- ARGV  worker, milliseconds to live, wake-up channel
-- Reply {worker, milliseconds left, ...} for each registered worker
local now = clock()
redis.call('ZREM', KEYS[1], '') -- see store() for why first
if redis.call('ZADD', KEYS[1], digits(now + ARGV[2] * 1000), ARGV[1]) == 1 then
  redis.call('PUBLISH', ARGV[3], 'w ' .. ARGV[1] .. ' on')
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
local reply = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for index = 2, #reply, 2 do
  reply[index] = math.floor((tonumber(reply[index]) - now) / 1000)
end
return reply
