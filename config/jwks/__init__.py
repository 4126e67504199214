"""Fetches the key sets of token issuers for the mesh."""
