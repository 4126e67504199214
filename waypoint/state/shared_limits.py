"""Limits that the replicas of a waypoint share, counted in Redis. Pure: the script, its call and its answer.

Every request asks, in one atomic script for all shared limits that it falls under; time is the server's. So
the count is exact over any number of replicas: no more pass than one replica alone would let, whatever the
order. The buckets are those of rate_limits.py, a moment each in microseconds; a key goes when its bucket is
full again. A key's name holds the limit's own numbers: another version of a policy counts anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from waypoint.state.rate_limits import Limit, Room
from waypoint.state.resp import NotResp, Reply, RespError, encode_command, words_of

SCRIPT: Final = b"""\
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local full = {}
for i, key in ipairs(KEYS) do
  local interval, burst = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local at = tonumber(redis.call('GET', key) or '') or now
  if at < now then at = now end
  local over = at + interval - now - burst * interval
  if over > 0.5 then return {0, i, math.ceil(over), math.ceil(at - now)} end
  full[i] = at + interval
end
local told = {1}
for i, key in ipairs(KEYS) do
  local interval, burst = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  redis.call('SET', key, string.format('%.2f', full[i]), 'PX', math.ceil((full[i] - now) / 1000) + 1)
  told[#told + 1] = math.floor((now + burst * interval - full[i]) / interval + 0.001)
  told[#told + 1] = math.ceil(full[i] - now)
end
return told
"""
SCRIPT_ID: Final = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

Entry = tuple[Limit, bytes, bytes]  # a limit, what its keys begin with, and whose bucket


def prefix_of(policy: str, index: int, content: bytes) -> bytes:
    """`content`: the limit's own bytes."""
    mark = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f"mycelia:rate:{policy}:{index}:{mark}:".encode()


def call_of(entries: Sequence[Entry]) -> bytes:
    keys = [prefix + hashlib.blake2b(key, digest_size=16).hexdigest().encode() for _, prefix, key in entries]
    numbers: list[bytes] = []
    for limit, _, _ in entries:
        numbers += (b"%.6f" % (limit.interval_s * 1e6), b"%d" % limit.burst)
    return encode_command(b"EVALSHA", SCRIPT_ID, b"%d" % len(keys), *keys, *numbers)


def room_of(reply: Reply, entries: Sequence[Entry]) -> Room:
    """The tightest room; `wait_s` > 0 where there is none. Raises `NotResp`."""
    if isinstance(reply, RespError):
        raise NotResp(reply.text)
    words = words_of(reply)
    if len(words) == 4 and words[0] == 0 and 1 <= words[1] <= len(entries) and words[2] > 0:
        return Room(entries[words[1] - 1][0], 0, words[3] / 1e6, words[2] / 1e6)
    if len(words) != 1 + 2 * len(entries) or words[0] != 1:
        raise NotResp("an answer of another form")
    rooms = (
        Room(entry[0], max(words[1 + 2 * index], 0), words[2 + 2 * index] / 1e6, 0.0)
        for index, entry in enumerate(entries)
    )
    return min(rooms, key=lambda room: room.remaining)
