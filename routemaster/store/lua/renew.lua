-- Promise: leases that are still ours live on; those that are not are told.
-- Runs while Redis is full.
-- KEYS  lease, meta of each subscriber in turn
-- ARGV  worker, milliseconds to live, then for each subscriber the epoch of our lease
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
