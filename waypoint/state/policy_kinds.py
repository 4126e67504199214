"""Which kinds of protection a waypoint understands, and how each is read. One line per kind.

The order is that in which a new worker hears of them; all of them come before the routes, so that no service
is served before what protects it is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from waypoint.state.authentication import AUTHENTICATION_TYPE, parse_authentication
from waypoint.state.authorization import AUTHORIZATION_TYPE, parse_authorization
from waypoint.state.filters import FILTER_TYPE, parse_filter
from waypoint.state.policies import Parse
from waypoint.state.rate_limits import RATE_LIMIT_TYPE, parse_rate_limits

POLICY_KINDS: Final[Mapping[str, Parse]] = MappingProxyType(
    {
        AUTHENTICATION_TYPE: parse_authentication,
        AUTHORIZATION_TYPE: parse_authorization,
        RATE_LIMIT_TYPE: parse_rate_limits,
        FILTER_TYPE: parse_filter,
    }
)
