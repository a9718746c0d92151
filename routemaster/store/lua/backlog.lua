-- Promise: what one topic owes to whom, in one view.
-- KEYS  meta, log, cursors of one topic
-- ARGV  none
-- Reply {publisher or '', tail or '', base or '', {subscriber, cursor, ID of the oldest event waiting or '', ...}}
local known = redis.call('HMGET', KEYS[1], 'publisher', 'tail', 'base')
local tail_n = known[2] and n_of(known[2]) or 0
local owed, all = {}, redis.call('HGETALL', KEYS[3])
for index = 1, #all, 2 do
  local oldest = ''
  for _, span in ipairs(parse(all[index + 1]).spans) do
    if (span.till and n_of(span.till) or tail_n) > n_of(span.after) then
      local entry = redis.call('XRANGE', KEYS[2], '(' .. span.after, span.till or '+', 'COUNT', 1)[1]
      if entry then
        oldest = entry[1]
        break
      end
    end
  end
  owed[#owed + 1] = all[index]
  owed[#owed + 1] = all[index + 1]
  owed[#owed + 1] = oldest
end
return {known[1] or '', known[2] or '', known[3] or '', owed}
