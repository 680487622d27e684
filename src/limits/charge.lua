-- Charges several rate limits at once: all of them, or none. The arithmetic is that of `SlidingWindow` in
-- src/domain/limits.rs, on this server's own time, so that all processes count by one clock.
--
-- KEYS  one counter each, in text: the start of its window in microseconds since 1970, the count of this window, and
--       the count of the window before. What is not three such numbers counts as absent.
-- ARGV  the cost; then for each counter the length of its window in microseconds, its limit, 1 where it never denies,
--       start, current and previous as the caller last saw them (zeros: never), and what the caller has charged by
--       itself in the window of that start and nobody else knows of.
-- Gives the time in microseconds, 1 where nothing was charged because a limit denies, and for each counter start,
-- current and previous as they now stand.
--
-- Every number is whole and at most 2^53 - 1, up to where a double is exact; and so is every comparison.

local MOST = 9007199254740991
local FIELDS = 7

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

-- The counter that a stored text holds. One of a window long ago stands for none: it has faded out.
local function read(text, length)
  local start, current, previous = string.match(text or '', '^(%d+) (%d+) (%d+)$')
  if start then
    start, current, previous = tonumber(start), tonumber(current), tonumber(previous)
    if math.max(start, current, previous) <= MOST and math.fmod(start, length) == 0 then
      return start, current, previous
    end
  end
  return 0, 0, 0
end

-- `SlidingWindow::at`: the two counts as they stand in the window that begins at `fresh`.
local function at(fresh, length, start, current, previous)
  local passed = fresh - start
  if passed < length then
    return current, previous
  end
  return 0, passed < 2 * length and current or 0
end

-- Whether p / q <= r / s, for p and r from 0 and q and s from 1. Crosswise products would not fit into a double. So
-- the whole parts are compared, and where they are equal the fractions, which are turned upside down for that: the
-- numbers only shrink, as in Euclid's algorithm.
local function at_most(p, q, r, s)
  while true do
    local p_rest, r_rest = math.fmod(p, q), math.fmod(r, s)
    local p_whole, r_whole = (p - p_rest) / q, (r - r_rest) / s
    if p_whole ~= r_whole then
      return p_whole < r_whole
    elseif p_rest == 0 then
      return true
    elseif r_rest == 0 then
      return false
    end
    p, q, r, s = s, r_rest, q, p_rest
  end
end

-- `SlidingWindow::admits`: the count of the window before weighs in by the part of it that is still covered.
local function admits(length, limit, start, current, previous, more)
  local room = limit - current - more
  if room < 0 or previous == 0 then
    return room >= 0
  end
  local covered = length - math.max(0, math.min(now - start, length))
  return covered == 0 or at_most(previous, length, room, covered)
end

local cost = tonumber(ARGV[1])
local counters = {}
local denied = false
for index, key in ipairs(KEYS) do
  local first = 2 + (index - 1) * FIELDS
  local length, limit, known = tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 3])
  local known_current, known_previous = tonumber(ARGV[first + 4]), tonumber(ARGV[first + 5])
  local stored, stored_current, stored_previous = read(redis.call('GET', key), length)

  -- What a clock far ahead has counted counts now: else it would stay in the way until that time comes.
  if stored > now + length then
    stored = now - math.fmod(now, length)
  end
  if known > now + length then
    known = now - math.fmod(now, length)
  end
  -- All move on to the newest window. Where a clock was a little ahead, that is not the present one, and it is kept.
  local time = math.max(now, stored, known)
  local start = time - math.fmod(time, length)
  stored_current, stored_previous = at(start, length, stored, stored_current, stored_previous)
  known_current, known_previous = at(start, length, known, known_current, known_previous)
  local alone_current, alone_previous = at(start, length, known, tonumber(ARGV[first + 6]), 0)

  -- Who knows of more is right: counts only grow while their window lasts, and this server may have been restarted
  -- empty, or have taken over from one whose last writes it never got.
  local current = math.min(math.max(stored_current, known_current) + alone_current, MOST)
  local previous = math.min(math.max(stored_previous, known_previous) + alone_previous, MOST)
  local is_news = current ~= stored_current or previous ~= stored_previous
  local is_shadow = ARGV[first + 2] == '1'
  if not is_shadow and not admits(length, limit, start, current, previous, math.max(cost, 1)) then
    denied = true
  end
  counters[index] = { length, start, current, previous, is_news }
end

local charged = denied and 0 or cost
local answer = { now, denied and 1 or 0 }
for index, key in ipairs(KEYS) do
  local length, start, current, previous, is_news = unpack(counters[index])
  current = math.min(current + charged, MOST)
  if charged > 0 or is_news then
    local text = string.format('%.0f %.0f %.0f', start, current, previous)
    -- Until it has faded out; no longer than that where the clock has stepped back since the window began.
    local left = 2 * length - math.max(0, now - start)
    redis.call('SET', key, text, 'PX', string.format('%.0f', math.ceil(left / 1000)))
  end
  local filled = #answer
  answer[filled + 1], answer[filled + 2], answer[filled + 3] = start, current, previous
end
return answer
