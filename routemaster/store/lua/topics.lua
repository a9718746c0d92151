-- Promise: some fields of the meta of each topic, as one snapshot.
-- KEYS  meta of each topic in turn
-- ARGV  fields
-- Reply {value or nil, ...}, each topic's in turn
local reply, count = {}, #ARGV
for index, meta in ipairs(KEYS) do
  for place, value in ipairs(redis.call('HMGET', meta, unpack(ARGV))) do
    reply[(index - 1) * count + place] = value
  end
end
return reply
