-- Changes what budgets count for the renders of a job, whose reservation admit.lua made. Amounts are
-- absolute, so a repeated call changes nothing.
--
-- KEYS: the money of each limit. ARGV: id of the reservation, nano dollars to count, those that are
-- counted if neither the reservation nor its cost is known here, '1' while the job is open, and the
-- day and month of the reservation; what belongs to an earlier period stays as it is.
--
-- The cost of an ended job stays as a field until `forget` is called, once SQL has recorded it.

local amount, known, day, month = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5], ARGV[6]
local lease, cost, is_open = 'lease:' .. ARGV[1], 'cost:' .. ARGV[1], ARGV[4] == '1'

local function add(money, period, change, reserved)
  redis.call('HINCRBY', money, period .. '_nano', string.format('%.0f', change))
  redis.call('HINCRBY', money, period .. '_reserved', string.format('%.0f', reserved))
end

for _, money in ipairs(KEYS) do
  local kept = redis.call('HMGET', money, 'day', 'month', lease, cost)
  if kept[2] == month then
    local held = tonumber(kept[3] or nil)
    local before = held or tonumber(kept[4] or nil) or known
    local change = amount - before
    local reserved = (is_open and amount or 0) - (held or 0)
    if kept[1] == day then add(money, 'day', change, reserved) end
    add(money, 'month', change, reserved)
    if is_open then
      redis.call('HSET', money, lease, ARGV[2])
    else
      redis.call('HDEL', money, lease)
      redis.call('HSET', money, cost, ARGV[2])
    end
  end
end
return 1
