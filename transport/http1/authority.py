"""Which names a request may be for (RFC 9110 4.2, 7.2, and stricter)."""

from __future__ import annotations

import re
from typing import Final

_MAX_AUTHORITY: Final = 255  # longer ones have crashed proxies (CVE-2024-32475), and no name is that long
_AUTHORITY: Final = re.compile(
    rb"(?:([0-9A-Za-z_~-]++(?:\.[0-9A-Za-z_~-]++)*)(\.?)|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?"
).fullmatch
_MAX_KNOWN: Final = 1024
_known: dict[bytes, bytes | None] = {}


def canonical_authority(text: bytes) -> bytes | None:
    """`host[:port]` without the root's trailing dot, or None if it is not that and nothing more.

    Userinfo, empty labels, paths and lists of hosts are refused. The dot goes so that `secret.com.` meets the
    policies of `secret.com`; the case stays, since it must not matter to anyone.
    """
    try:
        return _known[text]
    except KeyError:
        pass
    if len(text) > _MAX_AUTHORITY:
        return None
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    found = _known[text] = _judge(text)
    return found


def _judge(text: bytes) -> bytes | None:
    found = _AUTHORITY(text)
    if found is None:
        return None
    name, dot, port = found.groups(b"")
    if port and int(port[1:]) > 65_535:
        return None
    return name + port if dot else text
