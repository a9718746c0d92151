-- Promise: the subscription is stored as given; its memberships are in the reply,
-- for `join`, `leave` and `forget` to follow.
-- KEYS  meta, topics of one subscriber
-- ARGV  callback ('' for none), uuid ('' for none), how many further fields, then each with its
--       value ('' for none), topic...
-- Reply {version, {topic, "<membership> <version> on|left|gone", ...}}; the version of a
--       membership is that of the client's last change of it
local meta = redis.call('HMGET', KEYS[1], 'version', 'callback', 'uuid')
local version = math.max(clock(), (tonumber(meta[1] or '0')) + 1)
if not meta[2] then
  redis.call('HSET', KEYS[1], 'version', digits(version), 'created', digits(version), 'sent', '0', 'failures', '0')
end
if meta[2] and (meta[2] ~= ARGV[1] or meta[3] ~= ARGV[2]) then
  redis.call('HSET', KEYS[1], 'failures', '0')
end
redis.call('HDEL', KEYS[1], 'retry_at') -- end the backoff: who subscribes again may have repaired the receiver
redis.call('HSET', KEYS[1], 'version', digits(version), 'callback', ARGV[1], 'uuid', ARGV[2])
local fields = tonumber(ARGV[3])
for index = 4, 2 + 2 * fields, 2 do
  if ARGV[index + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[index])
  else
    redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
local spoken = ' ' .. digits(version) .. ' '
local wanted = {}
for index = 4 + 2 * fields, #ARGV do wanted[ARGV[index]] = true end
local memberships = redis.call('HGETALL', KEYS[2])
for index = 1, #memberships, 2 do
  local topic = memberships[index]
  local membership, state = string.match(memberships[index + 1], '^(%d+) %d+ (%a+)$')
  if wanted[topic] then
    if state ~= 'gone' then
      redis.call('HSET', KEYS[2], topic, membership .. spoken .. 'on')
      wanted[topic] = nil
    end
  elseif state == 'on' then
    redis.call('HSET', KEYS[2], topic, membership .. spoken .. 'left')
  end
end
for topic in pairs(wanted) do
  redis.call('HSET', KEYS[2], topic, digits(version) .. spoken .. 'on')
end
return {digits(version), redis.call('HGETALL', KEYS[2])}
