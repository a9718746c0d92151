-- Promise: one worker at a time delivers to a subscriber; the epoch of each new
-- lease is higher than all before. No lease lasts longer than its time to live,
-- even if Redis's clock was set back.
-- Runs while Redis is out of memory.
-- KEYS  lease, meta, topics of one subscriber
-- ARGV  worker, milliseconds to live
-- Reply {now, epoch, {field, value, ... of meta}, {topic, membership, ...}} if the worker holds the lease;
--       {now, 0, milliseconds to live of another worker's lease};
--       {now, -1} if the subscriber does not exist; {now, -2} if it pulls its events
local now = digits(clock())
local known = redis.call('HMGET', KEYS[2], 'epoch', 'lease_ms', 'callback')
local epoch = known[1]
if not epoch and redis.call('EXISTS', KEYS[2]) == 0 then return {now, -1} end
if known[3] == '' then return {now, -2} end
local lease = redis.call('GET', KEYS[1])
local holder, held = string.match(lease or '', '^(%S+) (%d+)$')
if lease and holder ~= ARGV[1] then
  return {now, 0, remaining(KEYS[1], known[2] or ARGV[2])}
end
if lease then
  epoch = held
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  epoch = digits(math.max(clock(), tonumber(epoch or '0') + 1))
  redis.call('HDEL', KEYS[2], 'epoch')
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'lease_ms', ARGV[2])
  redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. epoch, 'PX', ARGV[2])
end
return {now, epoch, redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3])}
