"""What a peer's octets mean: the types of HTTP/2, so that a proxy treats both protocols alike.

Header lists have HTTP/2's form: lower-case names, pseudo-headers first (`:method :scheme :authority :path`,
`:status`), no Host and no header that is about the connection. Two differences remain visible:

* `stream_id` counts the exchanges of the connection: 1, 2, 3...
* A request to change the protocol carries `upgrade: <protocol>`, and so does the 101 that grants it. It comes
  with end_stream False, as HTTP/2's extended CONNECT does: what follows the 101 is DataReceived both ways. A
  refused upgrade leaves a request without content, and no event says so again.

HeadersRejected says with which status a server's codec answered a request by itself; ConnectionFailed always
follows it. The `code` of ConnectionFailed is PROTOCOL_ERROR, or CANCEL if the peer just left too early.
"""

from __future__ import annotations

from typing import TypeAlias

from transport.http2.events import (
    ConnectionFailed,
    DataReceived,
    Header,
    HeadersReceived,
    HeadersRejected,
)

Event: TypeAlias = HeadersReceived | DataReceived | HeadersRejected | ConnectionFailed

__all__ = ["ConnectionFailed", "DataReceived", "Event", "Header", "HeadersReceived", "HeadersRejected"]
