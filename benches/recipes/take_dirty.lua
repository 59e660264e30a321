-- Takes dirty keys out of their set, with their values. Whoever dies then has them with him.
-- KEYS: the set.  ARGV: how many.
local dirty = redis.call('SPOP', KEYS[1], ARGV[1])
local values = redis.call('MGET', unpack(dirty))
return {dirty, values}
