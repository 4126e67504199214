"""Virtual addresses for services that nobody gave one: 240.240.0.0/16 and 2001:2::/48 (Istio's ranges).

One number per service stands for both addresses. It follows from the service's name, so that a lost table
gives (almost always) the same addresses again, and stays with the name until the range is used up, so that
a service that goes and comes back keeps its addresses. Pure; the shell keeps the table on disk.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Mapping
from typing import Final

from config.errors import AddressesExhausted

NUMBERS: Final = 65534
_V4 = int(ipaddress.ip_address("240.240.0.0"))
_V6 = int(ipaddress.ip_address("2001:2::"))


class VirtualAddresses:
    def __init__(self, table: Mapping[str, int] | None = None, *, numbers: int = NUMBERS) -> None:
        """`table` is a former `snapshot`; entries out of range or doubled are forgotten."""
        self._numbers = numbers
        self._number_of: dict[str, int] = {}
        self._holder_of: dict[int, str] = {}
        self.is_changed = False
        for name, number in sorted((table or {}).items()):
            if 1 <= number <= numbers and number not in self._holder_of:
                self._take(name, number)
        self.is_changed = False

    def snapshot(self) -> dict[str, int]:
        return dict(sorted(self._number_of.items()))

    def addresses(self, name: str, is_in_use: Callable[[str], bool]) -> tuple[str, str]:
        """The IPv4 and IPv6 address of `name`. Raises AddressesExhausted when all are in use."""
        number = self._number_of.get(name)
        if number is None:
            number = self._free_number(name, is_in_use)
            self._take(name, number)
        return str(ipaddress.IPv4Address(_V4 + number)), str(ipaddress.IPv6Address(_V6 + number))

    def _free_number(self, name: str, is_in_use: Callable[[str], bool]) -> int:
        first = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % self._numbers
        if len(self._holder_of) >= self._numbers:
            self._drop_one(is_in_use)
        for step in range(self._numbers):
            number = (first + step) % self._numbers + 1
            if number not in self._holder_of:
                return number
        raise AddressesExhausted(
            f"all {self._numbers} automatic addresses are in use; {name} gets none",
            next_step="give services addresses of their own",
        )

    def _drop_one(self, is_in_use: Callable[[str], bool]) -> None:
        for name in self._number_of:
            if not is_in_use(name):
                del self._holder_of[self._number_of.pop(name)]
                return

    def _take(self, name: str, number: int) -> None:
        self._number_of[name] = number
        self._holder_of[number] = name
        self.is_changed = True
