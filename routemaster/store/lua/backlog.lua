-- Promise: the backlog of some subscribers in one topic, as one snapshot.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscribers
-- Reply {publisher or '', tail or '', {subscriber, cursor, ID of the oldest event of the backlog or '', ...}}
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail')
local tail_n = known[2] and n_of(known[2]) or 0
local owed, cursors = {}, redis.call('HMGET', KEYS[3], unpack(ARGV))
for index, subscriber in ipairs(ARGV) do
  local oldest, cursor = '', cursors[index]
  for _, span in ipairs(cursor and parse(cursor).spans or {}) do
    if (span.till and n_of(span.till) or tail_n) > n_of(span.after) then
      local entry = redis.call('XRANGE', KEYS[2], '(' .. span.after, span.till or '+', 'COUNT', 1)[1]
      if entry then
        oldest = entry[1]
        break
      end
    end
  end
  if cursor then
    owed[#owed + 1] = subscriber
    owed[#owed + 1] = cursor
    owed[#owed + 1] = oldest
  end
end
return {known[1] or '', known[2] or '', owed}
