"""The keys of a run, and what is done to them: small scripts, each of them one step for Redis.

All scripts may be sent twice: whoever loses a connection does not know whether Redis has done
what was asked, and asks again.

A writer's entries carry ids that it chose, and Redis refuses an id that is not above the last
one.  `APPEND` then looks at the last id: of the same epoch it means that the entry was taken
when it was sent before; of a later one, that another writer has taken over; LAST, that the
run is over.  It stops at the first entry that is refused for another reason (no memory, say),
so that there is never a gap.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["APPEND", "OPEN", "RENEW", "STATE", "STOP_RUN", "WAKE", "Keys", "keys_of"]


class Keys(NamedTuple):
    """The keys of one run.

    Attributes:
        tag: The hash tag that they share.
        entries: The Redis stream.
        lease: There as long as a writer lives; its value is the writer's epoch.
    """

    tag: str
    entries: str
    lease: str


def keys_of(prefix: str, shards: int, stream_id: str) -> Keys:
    """The keys of a run.

    Runs share so many hash tags, so that in a cluster one connection reads many of them.
    """
    tag = f"{prefix}:{{{zlib.crc32(stream_id.encode()) % shards}}}"
    name = f"{tag}:{stream_id}"
    return Keys(tag, f"{name}:entries", f"{name}:lease")


@dataclass(frozen=True)
class Script:
    """A Lua script.

    Attributes:
        name: What it does.
        code: The code.
    """

    name: str
    code: str


_LAST = "18446744073709551615"

_TOP = """
local function top()
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1], string.match(info[i + 1], '(%d+)-(%d+)')
    end
  end
end
local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end
local LAST = '18446744073709551615'
"""

OPEN = Script(
    "open",
    _TOP
    + """
-- ARGV: who, lease, ttl, opening, stop.  Returns {0 begun | 1 was stopped, epoch, base}.
local who, lease, ttl = ARGV[1], ARGV[2], ARGV[3]
local previous, epoch, base, stopped = '0-0', nil, nil, false
if redis.call('EXISTS', KEYS[1]) == 1 then
  local id, e, n = top()
  previous = id
  local opening = redis.call('XRANGE', KEYS[1], e .. '-0', e .. '-0')
  local opened = opening[1] and opening[1][2] or {}
  if field(opened, 'by') == who then  -- sent twice; and stopped before or since, perhaps
    return {n == LAST and 1 or 0, e, field(opened, 'base')}
  end
  local entries = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  stopped = field(entries[1] and entries[1][2] or {}, 'early') == '1'
  base = field(opened, 'base') or e
  epoch = string.format('%.0f', tonumber(e) + 1)
else
  local now = redis.call('TIME')
  epoch = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
  base = epoch
end
redis.call('XADD', KEYS[1], epoch .. '-0', 'd', ARGV[4], 'previous', previous, 'base', base,
           'by', who)
redis.call('PEXPIRE', KEYS[1], ttl)
if stopped then
  redis.call('XADD', KEYS[1], epoch .. '-' .. LAST, 'd', ARGV[5], 'last', '0')
  return {1, epoch, base}
end
redis.call('SET', KEYS[2], epoch, 'PX', lease)
return {0, epoch, base}
""",
)

APPEND = Script(
    "append",
    _TOP
    + """
-- ARGV: epoch, number of the first, maxlen or 0, ttl or 0, final entry or '', entries...
-- Returns {0} taken, {1, last id} another writer has taken over, {2, final entry} is over.
local epoch, number, seal = ARGV[1], tonumber(ARGV[2]), ARGV[5]
local function add(id, ...)
  local reply = redis.pcall('XADD', KEYS[1], id, ...)
  if type(reply) ~= 'table' or not reply.err then return nil end
  if redis.call('EXISTS', KEYS[1]) == 0 then return reply end
  local last, e, n = top()
  if last == nil or tonumber(e) < tonumber(epoch) then return reply end
  if tonumber(e) > tonumber(epoch) then return {1, last} end
  if n == LAST then
    local final = field(redis.call('XRANGE', KEYS[1], last, last)[1][2], 'd')
    if seal ~= '' and final == seal then return nil end
    return {2, final}
  end
  local number = string.match(id, '-(%d+)')
  if number ~= LAST and tonumber(n) >= tonumber(number) then return nil end
  return reply
end
for i = 6, #ARGV do
  local id = epoch .. '-' .. string.format('%.0f', number)
  local refused = add(id, 'd', ARGV[i])
  if refused then return refused end
  number = number + 1
end
if seal ~= '' then
  local last = string.format('%.0f', number - 1)
  local refused = add(epoch .. '-' .. LAST, 'd', seal, 'last', last)
  if refused then return refused end
  if redis.call('GET', KEYS[2]) == epoch then redis.call('DEL', KEYS[2]) end
end
if tonumber(ARGV[3]) > 0 then redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[3]) end
if tonumber(ARGV[4]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return {0}
""",
)

RENEW = Script(
    "renew",
    """
-- ARGV: epoch, lease, ttl.  Returns 0 if the lease is another writer's.
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

STOP_RUN = Script(
    "stop",
    _TOP
    + """
-- ARGV: stop, opening, ttl, who.  Returns 0 if the run is over, 1 if it was stopped by this.
local who = ARGV[4]
local id, epoch, number, last, early
local function stopped(epoch)
  local final = redis.call('XRANGE', KEYS[1], epoch .. '-' .. LAST, epoch .. '-' .. LAST)
  return final[1] and field(final[1][2], 'by') == who
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  id, epoch, number = top()
  -- Sent twice; and somebody may have begun anew since, who is not to be stopped.
  if stopped(epoch) or stopped(string.format('%.0f', tonumber(epoch) - 1)) then return 1 end
  if number == LAST then return 0 end
  last, early = number, '0'
else
  local now = redis.call('TIME')
  epoch = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
  redis.call('XADD', KEYS[1], epoch .. '-0', 'd', ARGV[2], 'previous', '0-0', 'base', epoch,
             'by', '')
  last, early = '0', '1'
end
redis.call('XADD', KEYS[1], epoch .. '-' .. LAST, 'd', ARGV[1], 'last', last, 'early', early,
           'by', who)
redis.call('DEL', KEYS[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

STATE = Script(
    "state",
    """
-- Returns {} if there is no stream; else {id of the last entry, its d, milliseconds of the lease}.
local entries = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #entries == 0 then return {} end
return {entries[1][1], entries[1][2][2], redis.call('PTTL', KEYS[2])}
""",
)

WAKE = Script(
    "wake",
    """
-- Ends a blocking read that watches this key.  ARGV: number, milliseconds to keep it.
redis.pcall('XADD', KEYS[1], 'MAXLEN', 1, ARGV[1] .. '-0', 'w', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
""",
)
