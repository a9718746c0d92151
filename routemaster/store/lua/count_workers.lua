-- Promise: how many workers are alive, those included that have stopped without saying so
-- less than their time to live ago.
-- KEYS  workers
-- Reply number
return redis.call('ZCOUNT', KEYS[1], '(' .. digits(clock()), '+inf')
