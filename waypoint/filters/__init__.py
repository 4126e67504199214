"""What a filter is written against: `from waypoint.filters import Answer, Request` (docs/filters.md).

Standard library only; these names are stable.
"""

from waypoint.filters.api import Answer, Headers, Request, Response

__all__ = ["Answer", "Headers", "Request", "Response"]
