-- Promise: a topic has these settings. It is created only on request.
-- Runs while Redis is out of memory: less history may be what it needs.
-- KEYS  meta, log, cursors of one topic
-- ARGV  publisher ('' for root), 'create' or '', history, history_events or '', max_data or ''
-- Reply 1
-- Codes NOTYOURS, NOTOPIC
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail')
if known[1] and ARGV[1] ~= '' and known[1] ~= ARGV[1] then
  return redis.error_reply('RM:NOTYOURS another client publishes this topic')
end
if not known[1] and ARGV[2] == '' then
  return redis.error_reply('RM:NOTOPIC no such topic')
end
redis.call('HDEL', KEYS[1], 'history') -- see store() for why first
if not known[1] then
  local tail = known[2] or digits(clock()) .. '-0'
  redis.call('HSET', KEYS[1], 'tail', tail, 'publisher', ARGV[1], 'base', digits(n_of(tail)))
end
redis.call('HSET', KEYS[1], 'history', ARGV[3], 'history_events', ARGV[4], 'max_data', ARGV[5])
trim(KEYS[1], KEYS[2], KEYS[3], '=')
return 1
