-- Promise: the leases that this worker still holds are extended.
-- Runs while Redis is out of memory.
-- KEYS  lease, meta of each subscriber in turn
-- ARGV  worker, milliseconds to live, then for each subscriber the epoch of the lease
-- Reply {now, version of the subscription or -1 if the lease is lost, ...}
local reply = {digits(clock())}
for index = 1, #KEYS / 2 do
  local version = '-1'
  if redis.call('GET', KEYS[2 * index - 1]) == ARGV[1] .. ' ' .. ARGV[2 + index] then
    redis.call('PEXPIRE', KEYS[2 * index - 1], ARGV[2])
    version = redis.call('HGET', KEYS[2 * index], 'version') or '0'
  end
  reply[index + 1] = version
end
return reply
