-- Promise: the topic is among those of its publisher, which are at most so many.
-- KEYS  owned of one client
-- ARGV  topic, the most topics
-- Reply 1
-- Codes TOOMANY
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 and redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then
  return redis.error_reply('RM:TOOMANY too many topics')
end
redis.call('SADD', KEYS[1], ARGV[1])
return 1
