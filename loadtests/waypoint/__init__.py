"""`python -m loadtests.waypoint`: requests through tunnel, waypoint and tunnel, beside Envoy's."""
