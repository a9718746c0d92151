-- Promise: all events are appended, in order, or none; the first publisher of a
-- topic owns it. A topic is created only on request.
-- KEYS  meta, log, cursors of one topic
-- ARGV  publisher, wake-up channel, topic, 'create' or '', fragment...; with ' traced' behind the fourth each
--       fragment is followed by the trace context that is kept with it, empty: none
-- Reply {first ID, last ID}
-- Codes NOTYOURS, NOTOPIC
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail', 'history')
if known[1] and known[1] ~= ARGV[1] then
  return redis.error_reply('RM:NOTYOURS another client publishes this topic')
end
local step = string.sub(ARGV[4], -6) == 'traced' and 2 or 1
if not known[1] and string.sub(ARGV[4], 1, 6) ~= 'create' then
  return redis.error_reply('RM:NOTOPIC no such topic')
end
local us, n = clock(), 0
if known[2] then
  us, n = math.max(us, us_of(known[2])), n_of(known[2])
end
local stamp = digits(us) .. '-'
local base, count = n, (#ARGV - 4) / step
local has_cursors = redis.call('EXISTS', KEYS[3]) == 1
if has_cursors or (known[3] and known[3] ~= '0') then
  for index = 5, #ARGV, step do
    n = n + 1
    if step == 1 or ARGV[index + 1] == '' then
      redis.call('XADD', KEYS[2], stamp .. digits(n), 'e', ARGV[index])
    else
      redis.call('XADD', KEYS[2], stamp .. digits(n), 'e', ARGV[index], 't', ARGV[index + 1])
    end
  end
else
  n = n + count -- without subscribers and history events are counted, not stored
end
local first, last = stamp .. digits(base + 1), stamp .. digits(n)
if known[1] then
  redis.call('HSET', KEYS[1], 'tail', last)
else
  redis.call('HSET', KEYS[1], 'tail', last, 'publisher', ARGV[1], 'base', digits(base))
end
if has_cursors then
  redis.pcall('PUBLISH', ARGV[2], 't ' .. ARGV[3] .. ' ' .. first .. ' ' .. last)
end
return {first, last}
