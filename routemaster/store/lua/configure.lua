-- Promise: the subscription is stored as given; its memberships are in the reply,
-- for `join`, `leave` and `forget` to follow.
-- KEYS  meta, topics of one subscriber
-- ARGV  callback, uuid, secret ('' for none), how long a secret that is replaced signs too (microseconds),
--       how many of these at most, how many further fields, then each with its value ('' for none), topic...
-- Reply {version, {topic, "<membership> <version> on|left|gone", ...}}; the version of a
--       membership is that of the client's last change of it
local function set(field, value)
  if value == '' then
    redis.call('HDEL', KEYS[1], field)
  else
    redis.call('HSET', KEYS[1], field, value)
  end
end

-- `<secret> <until>` of each that signs beside the given one: first the one that it replaces now
local function old_secrets(secret, known, old)
  local found, now = {}, clock()
  if secret == '' then return '' end
  if known and known ~= secret then
    found[1] = known .. ' ' .. digits(now + tonumber(ARGV[4]))
  end
  for other, till in string.gmatch(old or '', '(%S+) (%d+)') do
    if other ~= secret and tonumber(till) > now and #found < tonumber(ARGV[5]) then
      found[#found + 1] = other .. ' ' .. till
    end
  end
  return table.concat(found, ' ')
end

local meta = redis.call('HMGET', KEYS[1], 'version', 'callback', 'uuid', 'secret', 'old_secrets')
local version = math.max(clock(), (tonumber(meta[1] or '0')) + 1)
if not meta[2] then
  redis.call('HSET', KEYS[1], 'version', digits(version), 'created', digits(version), 'sent', '0', 'failures', '0')
end
if meta[2] and (meta[2] ~= ARGV[1] or meta[3] ~= ARGV[2]) then
  redis.call('HSET', KEYS[1], 'failures', '0')
end
redis.call('HDEL', KEYS[1], 'retry_at') -- end the backoff: who subscribes again may have repaired the receiver
redis.call('HSET', KEYS[1], 'version', digits(version), 'callback', ARGV[1], 'uuid', ARGV[2])
set('old_secrets', old_secrets(ARGV[3], meta[4], meta[5]))
set('secret', ARGV[3])
local fields = tonumber(ARGV[6])
for index = 7, 5 + 2 * fields, 2 do set(ARGV[index], ARGV[index + 1]) end
local spoken = ' ' .. digits(version) .. ' '
local wanted = {}
for index = 7 + 2 * fields, #ARGV do wanted[ARGV[index]] = true end
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
