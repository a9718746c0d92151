-- Promise: a token is there, and speaks for the client that it is to speak for.
-- KEYS  tokens, the clients of tokens, the log of changes
-- ARGV  token, its name ('' for a token of the configuration, which is not kept
--       here), token that it replaces or '', client that it is to speak for or ''
-- Reply 1
-- Codes NOTOKEN, TAKEN
local token, name, replaced, wanted = unpack(ARGV)
local kept = redis.call('HGET', KEYS[2], token)
local client = kept or token
if replaced ~= '' and wanted == '' then
  if redis.call('HEXISTS', KEYS[1], replaced) == 0 then
    return redis.error_reply('RM:NOTOKEN there is no such token to replace')
  end
  wanted = replaced
end
if wanted ~= '' then
  wanted = redis.call('HGET', KEYS[2], wanted) or wanted
  if name ~= '' and wanted ~= client and (kept or redis.call('HEXISTS', KEYS[1], token) == 1) then
    return redis.error_reply('RM:TAKEN the token is another client\'s')
  end
  client = wanted
end
if client ~= (kept or token) then
  redis.call('HSET', KEYS[2], token, client)
end
if name ~= '' then
  redis.call('HSET', KEYS[1], token, name)
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 't', token,
  'n', redis.call('HGET', KEYS[1], token) or '', 'c', redis.call('HGET', KEYS[2], token) or '')
return 1
