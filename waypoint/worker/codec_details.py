"""What a codec found wrong with a client's octets, in Envoy's words (waypoint-facts 15). The codecs' own
words say more; they stand in the log beside these.
"""

from __future__ import annotations

from typing import Final

from waypoint.state.flags import Details, http2_violation

_HTTP1: Final = {
    "http_1_0": Details.LOW_VERSION,
    "content_length_and_transfer_encoding": Details.LENGTH_AND_CHUNKED,
    "header_name_malformed": Details.INVALID_CHARACTERS,
    "header_value_malformed": Details.INVALID_CHARACTERS,
    "head_too_large": Details.HEADERS_TOO_LARGE,
    "trailers_too_large": Details.HEADERS_TOO_LARGE,
    "too_many_headers": Details.TOO_MANY_HEADERS,
    "host_missing": Details.MISSING_HOST,
    "host_empty": Details.MISSING_HOST,
    "head_took_too_long": Details.HEADERS_TOO_SLOW,
}
_HTTP2: Final = {
    "empty_data_flood": Details.EMPTY_FRAMES_FLOOD,
    "ping_or_settings_flood": Details.OUTBOUND_FLOOD,
}


def codec_details(reason: str, *, is_http2: bool) -> str:
    """`reason` is a codec's, in snake_case."""
    if is_http2:
        return _HTTP2.get(reason) or http2_violation(reason)
    return _HTTP1.get(reason, Details.CODEC_ERROR)
