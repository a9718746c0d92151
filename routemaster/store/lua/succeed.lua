-- Promise: a success is recorded for each subscriber, if the lease under which the
-- attempt was made is still held. A repetition changes nothing.
-- Runs while Redis is out of memory.
-- KEYS  lease, meta of each subscriber in turn
-- ARGV  for each subscriber in turn "worker epoch", most events in the next batch (0: no limit), report
-- Reply 1
local now = digits(clock())
for index = 1, #KEYS / 2 do
  local lease, meta = KEYS[2 * index - 1], KEYS[2 * index]
  local holder, limit, report = unpack(ARGV, 3 * index - 2, 3 * index)
  if redis.call('GET', lease) == holder and redis.call('HEXISTS', meta, 'version') == 1 then
    redis.call('HDEL', meta, 'retry_at', 'batch_limit', 'refusals') -- see store() for why first
    local fields = {'failures', '0', 'last_attempt', now, 'last_success', now}
    if report ~= '' then fields[7], fields[8] = 'success', report end
    if limit ~= '0' then fields[#fields + 1], fields[#fields + 2] = 'batch_limit', limit end
    redis.call('HSET', meta, unpack(fields))
  end
end
return 1
