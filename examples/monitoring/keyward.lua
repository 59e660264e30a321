#!lua flags=no-writes,allow-stale
-- All numbers of Keyward for prometheus-redis-exporter -script: whatever the
-- server's INFO has of the module, so that new ones need no change here.
--
-- Without the flags a scrape would hang during CLIENT PAUSE WRITE and a failover,
-- and fail on a replica that has lost its primary.
local numbers = {}
for name, number in redis.call('INFO', 'keyward'):gmatch('(keyward_[%w_]+):(%-?%d+%.?%d*)\r\n') do
    numbers[#numbers + 1] = name
    numbers[#numbers + 1] = number
end
return numbers
