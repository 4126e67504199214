"""HTTP/1.1 without I/O (RFC 9110, RFC 9112). `codec.make_codec` is the way in; nothing is imported here."""
