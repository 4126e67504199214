"""HTTP/2 without I/O (RFC 9113, RFC 7541). `codec.make_codec` is the way in; nothing is imported here."""
