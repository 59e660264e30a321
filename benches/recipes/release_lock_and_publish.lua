-- Free a lock only if it is still ours, and tell those who wait. KEYS: lock, channel.  ARGV: the random value it was taken with, message.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('PUBLISH', KEYS[2], ARGV[2])
  return 1
end
return 0
