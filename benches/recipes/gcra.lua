-- GCRA as one moment, until when everything admitted is paid off. KEYS: limiter.  ARGV: microseconds for a unit, units at once.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local paid_off = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + ARGV[1]
if paid_off - now > ARGV[1] * ARGV[2] then
  return 0
end
-- Lua itself would write no more than 14 digits.
redis.call('SET', KEYS[1], string.format('%.0f', paid_off), 'PX', math.ceil((paid_off - now) / 1000))
return 1
