-- A value, its expiry and its tag sets in one step: the pipeline of set_with_tags.pipeline as a script.
-- KEYS: the key, then one set per tag.  ARGV: value, ttl in seconds.
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
for i = 2, #KEYS do
  redis.call('SADD', KEYS[i], KEYS[1])
  redis.call('EXPIRE', KEYS[i], ARGV[2])
end
return redis.status_reply('OK')
