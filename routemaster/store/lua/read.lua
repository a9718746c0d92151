-- Promise: the oldest events of a subscriber's backlog in several topics, in the
-- order of acceptance, as one snapshot.
-- KEYS  meta, log, cursors of each topic in turn
-- ARGV  subscriber, most events, most bytes, then for each topic an ID to start after ('' for none)
-- Reply {{cursor or '', tail or ''} for each topic..., {topic's index from 0, ID, fragment, ...},
--        1 if a limit of ARGV ended it, now}
local most, room, topics = tonumber(ARGV[2]), tonumber(ARGV[3]), #KEYS / 3
local chunk = topics == 1 and most or math.min(most, math.ceil(2 * most / topics) + 8)
local reply, sources = {}, {}

local function refill(source)
  source.place, source.entries = 1, {}
  while source.span do
    source.entries = redis.call('XRANGE', source.log, '(' .. source.after, source.span.till or '+', 'COUNT', chunk)
    if #source.entries > 0 then
      source.after = source.entries[#source.entries][1]
      break
    end
    source.index = source.index + 1
    source.span = source.spans[source.index]
    if source.span and n_of(source.span.after) > n_of(source.after) then source.after = source.span.after end
  end
  local head = source.entries[1]
  source.us = head and us_of(head[1])
  return source.us
end

for topic = 1, topics do
  local meta, log, cursors = KEYS[3 * topic - 2], KEYS[3 * topic - 1], KEYS[3 * topic]
  local text = redis.call('HGET', cursors, ARGV[1])
  reply[topic] = {text or '', redis.call('HGET', meta, 'tail') or ''}
  local spans = text and parse(text).spans or {}
  if #spans > 0 then
    local after = ARGV[3 + topic]
    if after == '' or n_of(after) < n_of(spans[1].after) then after = spans[1].after end
    local source = {topic = topic - 1, log = log, spans = spans, index = 1, span = spans[1], after = after}
    while source.span and source.span.till and n_of(source.span.till) <= n_of(after) do
      source.index = source.index + 1
      source.span = spans[source.index]
    end
    if source.span and n_of(source.span.after) > n_of(after) then source.after = source.span.after end
    if refill(source) then sources[#sources + 1] = source end
  end
end

local picked, count = {}, 0
while count < most and #sources > 0 do
  local best = 1
  for other = 2, #sources do
    if sources[other].us < sources[best].us then best = other end
  end
  local source = sources[best]
  local entry = source.entries[source.place]
  room = room - #entry[2][2] - 1
  if room < 0 and count > 0 then break end
  count = count + 1
  picked[3 * count - 2], picked[3 * count - 1], picked[3 * count] = source.topic, entry[1], entry[2][2]
  source.place = source.place + 1
  local following = source.entries[source.place]
  if following then
    if #sources > 1 then source.us = us_of(following[1]) end
  elseif count < most and not refill(source) then
    table.remove(sources, best)
  end
end
reply[topics + 1], reply[topics + 2], reply[topics + 3] = picked, #sources > 0 and 1 or 0, digits(clock())
return reply
