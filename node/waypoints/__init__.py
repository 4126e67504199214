"""The waypoints of this node: which are to run, their processes, and what is told about them."""
