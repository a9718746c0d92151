-- Promise: at most one process at a time holds the leader lock, and none for
-- longer than its time to live.
-- Runs while Redis is out of memory.
-- KEYS  the leader lock
-- ARGV  process, milliseconds to live
-- Reply 1 if the process holds the lock now, else 0
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  remaining(KEYS[1], ARGV[2])
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2]) -- see store() for why first
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
