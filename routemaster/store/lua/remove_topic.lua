-- Promise: the subscription no longer includes the topic.
-- KEYS  meta, topics of one subscriber
-- ARGV  topic
-- Reply {version, membership, version of the membership before this change}
-- Codes NOTSUBSCRIBED
local text = redis.call('HGET', KEYS[2], ARGV[1])
local membership, before, state = string.match(text or '', '^(%d+) (%d+) (%a+)$')
if state ~= 'on' then
  return redis.error_reply('RM:NOTSUBSCRIBED not subscribed')
end
local version = math.max(clock(), tonumber(redis.call('HGET', KEYS[1], 'version')) + 1)
redis.call('HDEL', KEYS[2], '') -- see store() for why first
redis.call('HSET', KEYS[1], 'version', digits(version))
redis.call('HSET', KEYS[2], ARGV[1], membership .. ' ' .. digits(version) .. ' left')
return {digits(version), membership, before}
