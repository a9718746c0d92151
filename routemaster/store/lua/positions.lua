-- Promise: a subscriber's positions in several topics, as one snapshot.
-- KEYS  meta, cursors of each topic in turn
-- ARGV  subscriber
-- Reply {now, cursor or '', tail or '' for each topic in turn}
local reply = {digits(clock())}
for topic = 1, #KEYS / 2 do
  reply[2 * topic] = redis.call('HGET', KEYS[2 * topic], ARGV[1]) or ''
  reply[2 * topic + 1] = redis.call('HGET', KEYS[2 * topic - 1], 'tail') or ''
end
return reply
