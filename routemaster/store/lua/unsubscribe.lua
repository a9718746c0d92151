-- Promise: the client has no subscription; all its memberships are `gone`, for
-- `forget` to remove their cursors.
-- KEYS  meta, topics of one subscriber, and its other keys
-- ARGV  none
-- Reply {version, {topic, "<membership> <version> gone", ...}}
-- Codes NOTSUBSCRIBED
local meta = redis.call('HMGET', KEYS[1], 'version', 'callback', 'epoch')
if not meta[2] then
  return redis.error_reply('RM:NOTSUBSCRIBED not subscribed')
end
local version = math.max(clock(), tonumber(meta[1]) + 1)
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  -- not the key itself, see store()
  if field ~= 'version' then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HSET', KEYS[1], 'version', digits(version), 'epoch', meta[3] or '0')
local memberships = redis.call('HGETALL', KEYS[2])
for index = 1, #memberships, 2 do
  memberships[index + 1] = string.match(memberships[index + 1], '^%d+') .. ' ' .. digits(version) .. ' gone'
  redis.call('HSET', KEYS[2], memberships[index], memberships[index + 1])
end
redis.call('DEL', unpack(KEYS, 3))
return {digits(version), memberships}
