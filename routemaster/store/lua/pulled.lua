-- Promise: the time of the last acknowledgement of a subscriber that pulls its events is recorded.
-- Runs while Redis is out of memory.
-- KEYS  meta of one subscriber
-- ARGV  wake-up channel, subscriber
-- Reply 1 if it pulls its events, else 0
-- Codes NOTSUBSCRIBED
local callback = redis.call('HGET', KEYS[1], 'callback')
if not callback then return redis.error_reply('RM:NOTSUBSCRIBED not subscribed') end
if callback ~= '' then return 0 end
local now = digits(clock())
redis.call('HDEL', KEYS[1], 'last_success') -- see store() for why first
redis.call('HSET', KEYS[1], 'last_attempt', now, 'last_success', now)
redis.pcall('PUBLISH', ARGV[1], 'a ' .. ARGV[2])
return 1
