-- Ends a request that admit.lua admitted: removes its lease, and replaces its reservation by its cost.
-- A second call changes no money, since the reservation is gone.
--
-- KEYS as in admit.lua. ARGV: lease id, cost in nano dollars, tokens to add, and the day and month of
-- the reservation; a reservation of an earlier period stays there.

local nano, tokens, day, month = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]

local function release(money, period, change, reserved)
  redis.call('HINCRBY', money, period .. '_nano', change)
  -- A version that did not count reservations may have made this one.
  if redis.call('HINCRBY', money, period .. '_reserved', reserved) < 0 then
    redis.call('HSET', money, period .. '_reserved', 0)
  end
end

for key = 0, #KEYS - 4, 4 do
  local money, reservation = KEYS[key + 4], 'lease:' .. ARGV[1]
  if tokens ~= 0 and redis.call('EXISTS', KEYS[key + 2]) == 1 then
    if redis.call('INCRBY', KEYS[key + 2], tokens) < 0 then
      redis.call('SET', KEYS[key + 2], 0, 'KEEPTTL')
    end
  end
  redis.call('ZREM', KEYS[key + 3], ARGV[1])
  local reserved = tonumber(redis.call('HGET', money, reservation) or nil)
  if reserved then
    local change, freed = string.format('%.0f', nano - reserved), string.format('%.0f', -reserved)
    local kept = redis.call('HMGET', money, 'day', 'month')
    redis.call('HDEL', money, reservation)
    if kept[1] == day then release(money, 'day', change, freed) end
    if kept[2] == month then release(money, 'month', change, freed) end
  end
end
return 1
