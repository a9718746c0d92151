-- Promise: a worker counts as live until its time is over; who lives is told. All
-- workers hear of one that is new. Runs while Redis is full.
-- KEYS  workers
-- ARGV  worker, milliseconds to live, wake-up channel
-- Reply {worker, milliseconds left, ...}
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
