-- Promise: the worker is registered until its time to live ends, as is every other,
-- even if Redis's clock was set back; a hint goes out if the worker is new.
-- Runs while Redis is out of memory.
-- KEYS  workers
-- ARGV  worker, milliseconds to live, wake-up channel
-- Reply {worker, milliseconds left, ...} for each registered worker
local now = clock()
local till = digits(now + ARGV[2] * 1000)
redis.call('ZREM', KEYS[1], '') -- see store() for why first
if redis.call('ZADD', KEYS[1], till, ARGV[1]) == 1 then
  redis.pcall('PUBLISH', ARGV[3], 'w ' .. ARGV[1] .. ' on')
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. till, '+inf')) do
  redis.call('ZADD', KEYS[1], till, worker)
end
local reply = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for index = 2, #reply, 2 do
  reply[index] = math.floor((tonumber(reply[index]) - now) / 1000)
end
return reply
