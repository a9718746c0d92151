-- Promise: the last ID of each log.
-- KEYS  meta of each topic in turn
-- ARGV  none
-- Reply {tail or '', ...}
local reply = {}
for index, meta in ipairs(KEYS) do
  reply[index] = redis.call('HGET', meta, 'tail') or ''
end
return reply
