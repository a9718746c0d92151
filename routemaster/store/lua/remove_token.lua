-- Promise: a token is not there; the client for which it spoke stays known.
-- Runs while Redis is out of memory.
-- KEYS  tokens, the clients of tokens, the log of changes
-- ARGV  token
-- Reply 1 if it was there, else 0
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 't', ARGV[1],
  'n', redis.call('HGET', KEYS[1], ARGV[1]) or '', 'c', redis.call('HGET', KEYS[2], ARGV[1]) or '')
return 1
