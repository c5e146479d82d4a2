-- Counts one request against all of its limits, or against none if one of them is exceeded.
--
-- KEYS, four per limit: requests in the minute, tokens in the minute, leases, money.
-- ARGV: lease id, lease in ms, nano dollars, tokens, day, month; then five per limit: requests
-- per minute, tokens per minute, concurrent requests, nano dollars per day and per month ('': none).
-- Returns {0, index of the limit, the exceeded kind, ms to wait, the maximum}, for a budget followed
-- by the nano dollars that are spent or reserved and those that are reserved, or
-- {1, the strictest limit on requests (0: none), its remaining requests, ms to its next minute}.

local MINUTE = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nano, tokens, day, month = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local count = #KEYS / 4

local function used(key)
  return tonumber(redis.call('GET', key) or 0)
end

local function left_ms(key)
  local ms = redis.call('PTTL', key)
  return ms > 0 and ms or MINUTE
end

local function spent(key)
  local kept = redis.call('HMGET', key, 'day', 'day_nano', 'month', 'month_nano',
    'day_reserved', 'month_reserved')
  local is_today, is_this_month = kept[1] == day, kept[3] == month
  return is_today and tonumber(kept[2]) or 0, is_this_month and tonumber(kept[4]) or 0,
    is_today and tonumber(kept[5] or 0) or 0, is_this_month and tonumber(kept[6] or 0) or 0
end

-- Numbers of more than fourteen digits would otherwise become text with an exponent.
local function text(number)
  return string.format('%.0f', number)
end

local function add(key, amount)
  redis.call('INCRBY', key, amount)
  if redis.call('PTTL', key) < 0 then redis.call('PEXPIRE', key, MINUTE) end
end

local tightest, remaining, reset = 0, -1, 0
for i = 0, count - 1 do
  local key, argument = 4 * i, 6 + 5 * i
  local requests, words = tonumber(ARGV[argument + 1]), tonumber(ARGV[argument + 2])
  local leases = tonumber(ARGV[argument + 3])
  local daily, monthly = tonumber(ARGV[argument + 4]), tonumber(ARGV[argument + 5])
  if requests then
    local left, ms = requests - used(KEYS[key + 1]) - 1, left_ms(KEYS[key + 1])
    if left < 0 then return {0, i, 'requests', ms, requests} end
    if remaining < 0 or left < remaining then tightest, remaining, reset = requests, left, ms end
  end
  if words then
    -- A request may need more tokens than the limit if it is the first of its minute.
    local before = used(KEYS[key + 2])
    if before > 0 and before + tokens > words then
      return {0, i, 'tokens', left_ms(KEYS[key + 2]), words}
    end
  end
  if leases then
    redis.call('ZREMRANGEBYSCORE', KEYS[key + 3], '-inf', now)
    if redis.call('ZCARD', KEYS[key + 3]) >= leases then return {0, i, 'concurrent', 1000, leases} end
  end
  -- With an exhausted budget, free requests still pass.
  if nano > 0 and (daily or monthly) then
    local today, this_month, of_today, of_month = spent(KEYS[key + 4])
    if daily and today + nano > daily then
      return {0, i, 'day', 0, 0, text(today), text(of_today)}
    end
    if monthly and this_month + nano > monthly then
      return {0, i, 'month', 0, 0, text(this_month), text(of_month)}
    end
  end
end

for i = 0, count - 1 do
  local key, argument = 4 * i, 6 + 5 * i
  if ARGV[argument + 1] ~= '' then add(KEYS[key + 1], 1) end
  if ARGV[argument + 2] ~= '' and tokens > 0 then add(KEYS[key + 2], tokens) end
  if ARGV[argument + 3] ~= '' then
    redis.call('ZADD', KEYS[key + 3], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[key + 3], 2 * ARGV[2])
  end
  if nano > 0 and (ARGV[argument + 4] ~= '' or ARGV[argument + 5] ~= '') then
    local money = KEYS[key + 4]
    local today, this_month, of_today, of_month = spent(money)
    -- A new month drops the reservations of the old one, such as those of dead replicas.
    if redis.call('HGET', money, 'month') ~= month then redis.call('DEL', money) end
    -- Reserves once per lease, even if the client repeats the call after a broken connection.
    -- No expiry: money must be kept until its period ends.
    if redis.call('HSETNX', money, 'lease:' .. ARGV[1], ARGV[3]) == 1 then
      redis.call('HSET', money, 'day', day, 'day_nano', text(today + nano),
        'day_reserved', text(of_today + nano), 'month', month,
        'month_nano', text(this_month + nano), 'month_reserved', text(of_month + nano))
    end
  end
end
return {1, tightest, remaining, reset}
