"""The default codec: both halves with the patterns of lexing.py and the writers of sending.py."""

from __future__ import annotations

from transport.http1.receiving import ReceivingHalf


class LeanCodec(ReceivingHalf):
    """The first implementation of codec.Http1Codec."""
