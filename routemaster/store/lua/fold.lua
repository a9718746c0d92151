-- Promise: a stay that is over leaves nothing but its count; a subscriber that is
-- gone and has no stay left leaves nothing at all.
-- KEYS  lease, meta, topics of one subscriber
-- ARGV  version of the subscription on which the caller judges, then for each
--       stay in turn: topic, membership, events sent in it, events dropped
-- Reply 1 if nothing is left of the subscriber, else 0
local current = redis.call('HGET', KEYS[2], 'version') == ARGV[1]
local sent, dropped = 0, 0
for index = 2, #ARGV, 4 do
  local stay = redis.call('HGET', KEYS[3], ARGV[index])
  local membership, state = string.match(stay or '', '^(%d+) (%a+)$')
  -- a stay still wanted is over only if its topic was deleted, and only if the
  -- client has not spoken since
  if membership == ARGV[index + 1] and (state ~= 'on' or current) then
    redis.call('HDEL', KEYS[3], ARGV[index])
    if state ~= 'gone' then
      sent, dropped = sent + tonumber(ARGV[index + 2]), dropped + tonumber(ARGV[index + 3])
    end
  end
end
if redis.call('HEXISTS', KEYS[2], 'callback') == 1 then
  if sent > 0 then redis.call('HINCRBY', KEYS[2], 'sent', digits(sent)) end
  if dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', digits(dropped)) end
  return 0
end
if redis.call('HLEN', KEYS[3]) > 0 then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return 1
