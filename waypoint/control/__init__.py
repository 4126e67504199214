"""The waypoint's control process."""
