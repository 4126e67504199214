"""The L7 proxy of a service or namespace: `state/` decides, `worker/` moves the bytes.

No process runs them yet: the control plane compiles routes, and the status says that nobody serves them.
"""
