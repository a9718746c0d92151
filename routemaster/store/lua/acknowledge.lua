-- Promise: the cursor moves forward over events that were delivered, each
-- counted once however often this is repeated; it never moves back.
-- Runs while Redis is full.
-- KEYS  meta, log, cursors of one topic
-- ARGV  subscriber, membership, ID of the last event delivered
-- Reply {events passed, cursor or false, tail}
local tail = redis.call('HGET', KEYS[1], 'tail')
local text = redis.call('HGET', KEYS[3], ARGV[1])
local cursor = text and parse(text)
if not cursor or cursor.membership ~= tonumber(ARGV[2]) then
  return {0, text, tail}
end
local n, passed, left = n_of(ARGV[3]), 0, {}
for _, span in ipairs(cursor.spans) do
  local after = n_of(span.after)
  if span.till and n_of(span.till) <= n then
    passed = passed + n_of(span.till) - after
  else
    if after < n then
      passed = passed + n - after
      span.after = ARGV[3]
    end
    left[#left + 1] = span
  end
end
if passed > 0 then
  cursor.spans, cursor.sent = left, cursor.sent + passed
  store(KEYS[3], ARGV[1], cursor)
  -- with many subscribers finding the lowest cursor is left to the sweep
  if redis.call('HLEN', KEYS[3]) <= 8 then trim(KEYS[1], KEYS[2], KEYS[3], '~') end
end
return {passed, format(cursor), tail}
