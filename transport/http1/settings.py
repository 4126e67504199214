"""What a codec is told at birth: sizes and counts, each with what happens at its bound."""

from __future__ import annotations

from dataclasses import dataclass

from transport.http2.settings import Role

KIB = 1024

__all__ = ["KIB", "Http1Settings", "Role"]


@dataclass(frozen=True, slots=True)
class Http1Settings:
    """Both roles' settings. Passing a bound ends the connection; a server answers 431 for a head or trailers.

    `scheme` is what `:scheme` says for a target that names none.
    """

    max_head: int = 60 * KIB  # octets of start line and fields
    max_trailers: int = 16 * KIB  # octets of a trailer section
    max_header_count: int = 100  # lines, in a head or in trailers
    max_chunk_line: int = 256  # octets of a chunk-size line with its extensions
    max_chunk_extensions: int = 4 * KIB  # octets of chunk extensions in one message
    max_held: int = 512 * KIB  # octets that came before their turn (pipelining, or before a 101)
    max_informational: int = 32  # 1xx responses in one exchange
    scheme: bytes = b"http"

    def __post_init__(self) -> None:
        if self.scheme not in (b"http", b"https"):
            raise ValueError(f"scheme must be http or https, is {self.scheme!r}")
        for name in (
            "max_head",
            "max_trailers",
            "max_header_count",
            "max_chunk_line",
            "max_held",
            "max_informational",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
