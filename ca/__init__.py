"""Certificates: the mesh's authority, the service that issues, and the client that fetches."""
