-- A value, and its key in the set of those that the database does not have yet.
-- KEYS: the key, the set.  ARGV: value, ttl in seconds.
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('SADD', KEYS[2], KEYS[1])
return redis.status_reply('OK')
