"""The waypoint's data plane: HTTP between byte streams, callback style, on the reactor."""
