"""What a waypoint lets a request be, before it asks who may send it (docs/limits.md). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from transport.http2.events import Header

# What becomes of header names with an underscore, which some applications cannot tell from a hyphen.
Underscores: TypeAlias = Literal["allow", "drop", "reject"]
KIB = 1024


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Sizes in bytes, times in seconds; a body of 0 bytes means no limit. Answers: target 414, head 431,
    body 413, a head that takes too long 408.
    """

    max_target_bytes: int = 16 * KIB
    max_head_bytes: int = 60 * KIB
    max_header_count: int = 100
    max_body_bytes: int = 0
    head_time_s: float = 30.0
    underscores: Underscores = "allow"
    caller_header: str = ""  # tells the application who calls; empty: it is not told

    def excess_of(self, target_bytes: int, headers: list[Header]) -> tuple[int, str] | None:
        """Status and detail of a request that is too large, as far as its head shows."""
        if target_bytes > self.max_target_bytes:
            return 414, "request_target_too_long"
        if self.max_body_bytes:
            for name, value in headers:
                if name == b"content-length" and int(value) > self.max_body_bytes:
                    return 413, "request_payload_too_large"
        if self.underscores == "reject" and any(b"_" in name for name, _ in headers):
            return 400, "header_name_has_underscore"
        return None

    @property
    def changes_headers(self) -> bool:
        return bool(self.caller_header) or self.underscores == "drop"

    def change(self, headers: list[Header], caller: str) -> list[Header]:
        """The headers as the application gets them. What a client says about its caller is never passed on,
        in whatever spelling an application could take for it.
        """
        if self.underscores == "drop":
            headers = [field for field in headers if b"_" not in field[0]]
        if not self.caller_header:
            return headers
        own = self.caller_header.encode()
        kept = [field for field in headers if field[0].replace(b"_", b"-") != own]
        if caller:
            kept.append((own, caller.encode()))
        return kept


@dataclass(frozen=True, slots=True)
class RedisEndpoint:
    """Where shared rate limits are counted. The password is read from its file at every connection, so that
    it may change.
    """

    host: str
    port: int = 6379
    user: str = ""
    database: int = 0
    password_file: str = ""
    timeout_s: float = 0.1
