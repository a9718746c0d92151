-- Promise: whether no attempt to deliver to the subscriber is under way: no worker
-- has its lease, or the pause after a failure is not over.
-- KEYS  lease, meta of one subscriber
-- ARGV  none
-- Reply 1 or 0
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
local known, now = redis.call('HMGET', KEYS[2], 'retry_at', 'last_attempt'), clock()
-- a second less, because the worker counts by its own clock; with last_attempt in the future
-- the clock was set back, and the pause may be over
if known[1] and known[2] and tonumber(known[1]) > now + 1e6 and tonumber(known[2]) <= now then return 1 end
return 0
