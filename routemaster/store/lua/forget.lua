-- Promise: the cursor of an ended membership is removed.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, version, 'settled' (only without backlog) or 'all'
-- Reply 1 if the topic has no cursor of this membership, 0 if the cursor is still needed
local text, others, all = nil, {}, redis.call('HGETALL', KEYS[3])
for index = 1, #all, 2 do
  if all[index] == ARGV[1] then text = all[index + 1] else others[#others + 1] = all[index + 1] end
end
if not text then return 1 end
local cursor = parse(text)
if cursor.membership > tonumber(ARGV[2]) then return 1 end
if cursor.version > tonumber(ARGV[3]) then return 0 end
if ARGV[4] == 'settled' and #cursor.spans > 0 then return 0 end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[1], 'awaits:' .. ARGV[1], 'cuts:' .. ARGV[1])
trim(KEYS[1], KEYS[2], KEYS[3], '=', others)
return 1
