"""Python filters in a waypoint's worker: who runs them, when they are called, what becomes of bodies."""
