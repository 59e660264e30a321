-- Everything under a tag, in one step. KEYS: the tag's set.
local members = redis.call('SMEMBERS', KEYS[1])
-- unpack() is limited by Lua's stack, hence the slices.
for first = 1, #members, 5000 do
  redis.call('UNLINK', unpack(members, first, math.min(first + 4999, #members)))
end
redis.call('UNLINK', KEYS[1])
return #members
