-- Promise: what follows given IDs in several logs, in order.
-- KEYS  log of each topic in turn
-- ARGV  most events of each log, bytes in all, 'traced' or '', then an ID for each log
-- Reply for each log in turn {ID, fragment, ...}, traced: {ID, fragment, trace context or '', ...}; logs that the
--       bytes do not suffice for are left out
-- Reads in steps of the size that the events so far suggest, because XRANGE cannot be limited by bytes.
local most, room = tonumber(ARGV[1]), tonumber(ARGV[2])
local reply, size, count, traced = {}, 0, 0, ARGV[3] == 'traced'
for index, log in ipairs(KEYS) do
  if size >= room then break end
  local after, found, left = ARGV[3 + index], {}, most
  while left > 0 and size < room do
    local step = count == 0 and 1 or math.max(1, math.min(32, math.floor((room - size) * count / size)))
    step = math.min(step, left)
    local entries = redis.call('XRANGE', log, '(' .. after, '+', 'COUNT', step)
    for _, entry in ipairs(entries) do
      local fragment = entry[2][2]
      found[#found + 1], found[#found + 2] = entry[1], fragment
      if traced then found[#found + 1] = entry[2][4] or '' end
      size, count = size + #fragment, count + 1
    end
    if #entries < step then break end
    left, after = left - step, entries[step][1]
  end
  reply[index] = found
end
return reply
