"""Regular expressions of routes and policies, as they are matched. The engine is in transport/regex.py."""

from __future__ import annotations

from transport.regex import Engine, PatternRejected, compile_re2, engine_errors, is_available
from waypoint.state.errors import RoutesRejected

__all__ = ["Pattern", "check_substitution", "is_available"]

_LITERAL_BYTES = 64


class Pattern:
    """One compiled expression. Octets that are no UTF-8 match nothing, as at Envoy."""

    __slots__ = ("_engine", "text")

    def __init__(self, text: str, *, is_case_ignored: bool = False) -> None:
        """Raises `RoutesRejected` with the reason if the pattern cannot be used."""
        self.text = text
        self._engine = _compile(f"(?i:{text})" if is_case_ignored else text)

    def is_full_match(self, value: bytes) -> bool:
        return self._engine.fullmatch(value) is not None

    def replace_all(self, substitution: bytes, value: bytes) -> bytes:
        r"""Every match replaced; `\1` in `substitution` stands for a group."""
        return self._engine.sub(substitution, value)

    def literal_prefix(self) -> bytes:
        """Octets with which every match surely begins; maybe none."""
        try:
            lowest, highest = self._engine.possiblematchrange(_LITERAL_BYTES)
        except engine_errors():
            return b""
        length = 0
        for low, high in zip(lowest, highest, strict=False):
            if low != high:
                break
            length += 1
        return lowest[:length]

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _compile(text: str) -> Engine:
    try:
        return compile_re2(text)
    except PatternRejected as error:
        raise RoutesRejected(error.text, next_step=error.next_step) from error


def check_substitution(text: str) -> bytes:
    r"""The substitution as bytes; a backslash may only be followed by a digit or a backslash."""
    position = text.find("\\")
    while position >= 0:
        following = text[position + 1 : position + 2]
        if following != "\\" and not ("0" <= following <= "9"):
            raise RoutesRejected(f"substitution {text!r} has a backslash without a group's digit")
        position = text.find("\\", position + 2)
    return text.encode()
