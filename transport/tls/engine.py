"""One OpenSSL connection over memory BIOs: bytes in, bytes out, no socket.

This is the only module that calls OpenSSL's C functions. pyOpenSSL's own `recv_into`, `send`, `bio_read` and
`bio_write` allocate a buffer and copy it once more per call, and raise an exception for each "no more data";
on the data path that doubles the cost of a small message. Everything that is not per message (handshake,
errors, certificates) goes through pyOpenSSL.

OpenSSL keeps a queue of errors per thread and `SSL_get_error` looks at it, so each failure must empty the
queue: pyOpenSSL does that when it raises.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from transport.tls.buffers import CIPHER_BYTES, PLAIN_BYTES, TlsBuffers
from transport.tls.errors import HandshakeFailed, TlsBroken

_lib: Final[Any] = SSL._lib  # type: ignore[attr-defined]
_ffi: Final[Any] = SSL._ffi  # type: ignore[attr-defined]
_from_buffer = _ffi.from_buffer
_ssl_read = _lib.SSL_read
_ssl_write = _lib.SSL_write
_ssl_get_error = _lib.SSL_get_error
_bio_read = _lib.BIO_read
_bio_write = _lib.BIO_write
_bio_get_mem_data = _lib.BIO_get_mem_data
_scratch = _ffi.new("char **")
_WANT_READ: Final[int] = _lib.SSL_ERROR_WANT_READ
_ZERO_RETURN: Final[int] = _lib.SSL_ERROR_ZERO_RETURN
_RECORD_BYTES = 16384
_DATE_VERDICTS = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
CLOCK_HINT = " (by this host's clock: compare it with the peer's and the CA's)"
_PIECE_BYTES = 32 * 1024  # of ciphertext into OpenSSL at a time


class Decrypted(enum.Enum):
    """Why `decrypt` stopped."""

    DRAINED = "needs more ciphertext"
    FULL = "the plaintext buffer is full; call again"
    CLOSED = "the peer has sent its closing message"


class TlsEngine:
    """Both halves of one connection. Not thread-safe: while `handshake` runs in a thread, nothing else
    may."""

    __slots__ = ("_buffers", "_connection", "_from_ssl", "_into_ssl", "_ssl", "plain_bytes")

    def __init__(
        self,
        context: SSL.Context,
        buffers: TlsBuffers,
        *,
        is_server: bool,
        server_name: bytes = b"",
        alpn: Sequence[bytes] = (),
    ) -> None:
        """A client may name the server it wants, and offer protocols in place of the context's."""
        connection = SSL.Connection(context)
        if is_server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
            if server_name:
                connection.set_tlsext_host_name(server_name)
            if alpn:
                connection.set_alpn_protos(list(alpn))
        self._connection = connection
        self._ssl = connection._ssl
        self._into_ssl = connection._into_ssl
        self._from_ssl = connection._from_ssl
        self._buffers = buffers
        self.plain_bytes = 0  # what the last `decrypt` put into buffers.plain

    def handshake(self) -> bool:
        """Go as far as the input allows: True = done. Raises HandshakeFailed; an alert is in the output
        then."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise HandshakeFailed(f"the TLS handshake failed: {self._explain(error)}") from error
        return True

    @property
    def alpn(self) -> bytes:
        return self._connection.get_alpn_proto_negotiated()

    def peer_der(self) -> bytes | None:
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        return None if certificate is None else certificate.public_bytes(Encoding.DER)

    def feed(self, size: int, start: int = 0) -> None:
        """Take in `size` bytes of buffers.cipher from `start`."""
        if _bio_write(self._into_ssl, self._buffers.cipher_pointer + start, size) != size:
            raise MemoryError("OpenSSL's input buffer cannot grow")

    def feed_view(self, data: memoryview) -> None:
        """Take in `data`, wherever it lies: for ciphertext that came over another stream."""
        if _bio_write(self._into_ssl, _from_buffer(data), len(data)) != len(data):
            raise MemoryError("OpenSSL's input buffer cannot grow")

    def decrypt(self, size: int = 0) -> Decrypted:
        """Take in the first `size` bytes of buffers.cipher and fill buffers.plain from its start.

        `plain_bytes` says how far. The input goes through OpenSSL in pieces: its buffer never shrinks, so
        each connection that once read a full buffer would keep as much memory for life. Raises TlsBroken.
        """
        self.plain_bytes = 0
        piece = min(size, _PIECE_BYTES)
        if piece:
            self.feed(piece)
        taken = piece
        while True:
            outcome = self._read_records()
            if taken == size or outcome is Decrypted.CLOSED:
                return outcome
            piece = min(size - taken, _PIECE_BYTES) if outcome is Decrypted.DRAINED else size - taken
            self.feed(piece, taken)
            taken += piece
            if outcome is Decrypted.FULL:
                return outcome

    def _read_records(self) -> Decrypted:
        ssl = self._ssl
        into_ssl = self._into_ssl
        pointer = self._buffers.plain_pointer
        filled = self.plain_bytes
        while True:
            if filled > PLAIN_BYTES - _RECORD_BYTES:
                self.plain_bytes = filled
                return Decrypted.FULL
            size = _ssl_read(ssl, pointer + filled, PLAIN_BYTES - filled)
            if size <= 0:
                break
            filled += size
            # OpenSSL takes in whole records only, so after a short one with no input left the next read would
            # be in vain. Asking the BIO is four times cheaper than asking SSL_read.
            if size < _RECORD_BYTES and not _bio_get_mem_data(into_ssl, _scratch):
                self.plain_bytes = filled
                return Decrypted.DRAINED
        self.plain_bytes = filled
        code = _ssl_get_error(ssl, size)
        if code == _WANT_READ:
            return Decrypted.DRAINED
        if code == _ZERO_RETURN:
            return Decrypted.CLOSED
        raise self._broken(size)

    def encrypt(self, data: bytes | bytearray | memoryview) -> None:
        """Turn all of `data` (not empty) into records in the output."""
        size = len(data)
        done = _ssl_write(self._ssl, _from_buffer(data), size)
        if done != size:
            raise self._broken(done)

    def take_output(self) -> int:
        """Move ciphertext into buffers.output; its size, 0 = none left."""
        size: int = _bio_read(self._from_ssl, self._buffers.output_pointer, CIPHER_BYTES)
        return max(size, 0)

    def close_notify(self) -> None:
        """Put the closing message into the output."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            return  # broken before: there is nothing to say goodbye to

    def _broken(self, result: int) -> TlsBroken:
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.Error as error:
            broken = TlsBroken(f"the TLS connection broke: {_text(error)}")
            broken.__cause__ = error
            return broken
        return TlsBroken("the TLS connection broke")

    def _explain(self, error: SSL.Error) -> str:
        verdict: int = _lib.SSL_get_verify_result(self._ssl)
        if verdict:
            reason = _ffi.string(_lib.X509_verify_cert_error_string(verdict)).decode()
            hint = CLOCK_HINT if verdict in _DATE_VERDICTS else ""
            return f"the peer's certificate is not accepted: {reason}{hint}"
        return _text(error)


def _text(error: SSL.Error) -> str:
    """The reasons of OpenSSL's error queue, without its library names."""
    reasons = error.args[0] if error.args else ()
    if isinstance(reasons, list | tuple):
        texts = [str(entry[-1]) for entry in reasons if isinstance(entry, tuple) and entry]
        if texts:
            return ", ".join(texts)
    return " ".join(str(part) for part in error.args) or type(error).__name__
