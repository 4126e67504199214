"""Mutual TLS over the reactor: contexts, peer identities, and the pump between a socket and its handler."""
