-- Promise: one process at a time does what needs doing once for all. Runs while
-- Redis is full.
-- KEYS  the office
-- ARGV  process, milliseconds to live
-- Reply 1 if the process holds the office now, else 0
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2]) -- see store() for why first
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
