"""The service's ports, and how many routes each has: the request takes the last of them."""

from __future__ import annotations

from typing import Final

# port -> routes
ROUTE_COUNTS: Final = {80: 1, 8100: 100, 8101: 1000}
GRPC_PORT: Final = 81


def other_prefix(number: int) -> str:
    """The path prefix of a route that the load does not ask for."""
    return f"/api/v{number % 7}/resource-{number}"
