"""The scratch memory that all TLS connections of one reactor share.

No connection owns a read buffer: ciphertext and plaintext pass through here within one callback. The views
start 64 bytes into a page: on some processors a copy to an address of 1 to 16 modulo 4096 is five to eight
times slower, and this address is never among those.
"""

from __future__ import annotations

import mmap
import weakref
from typing import Any, Final

from OpenSSL import SSL

from transport.reactor import Reactor

_ffi: Final[Any] = SSL._ffi  # type: ignore[attr-defined]

CIPHER_BYTES = 256 * 1024  # of one recv or send
PLAIN_BYTES = CIPHER_BYTES + 32 * 1024  # of one recv, and of the record that was begun before
_OFFSET = 64


def _aligned(size: int) -> tuple[memoryview, Any]:
    view = memoryview(mmap.mmap(-1, size + 4096))[_OFFSET : _OFFSET + size]
    return view, _ffi.from_buffer("char[]", view, require_writable=True)


class TlsBuffers:
    """Views and their C pointers: `cipher` in, `plain` out of OpenSSL; `output` for ciphertext to send."""

    def __init__(self) -> None:
        self.cipher, self.cipher_pointer = _aligned(CIPHER_BYTES)
        self.plain, self.plain_pointer = _aligned(PLAIN_BYTES)
        self.output, self.output_pointer = _aligned(CIPHER_BYTES)
        self.last_inline_handshake = -1.0  # reactor.now of the pass that did one in the loop


class InnerBuffers(TlsBuffers):
    """For connections within others': those others' buffers are in use while these are."""

    def __init__(self) -> None:
        super().__init__()
        self.is_busy = False  # a handler is reading `plain`


# Held here and nowhere in a cycle: the garbage collector of CPython 3.11 crashes over views of a mmap.
_inner_of_reactor: weakref.WeakKeyDictionary[Reactor, InnerBuffers] = weakref.WeakKeyDictionary()
_of_reactor: weakref.WeakKeyDictionary[Reactor, TlsBuffers] = weakref.WeakKeyDictionary()


def buffers_of(reactor: Reactor) -> TlsBuffers:
    buffers = _of_reactor.get(reactor)
    if buffers is None:
        buffers = _of_reactor[reactor] = TlsBuffers()
    return buffers


def inner_buffers_of(reactor: Reactor) -> InnerBuffers:
    buffers = _inner_of_reactor.get(reactor)
    if buffers is None:
        buffers = _inner_of_reactor[reactor] = InnerBuffers()
    return buffers
