"""Coverage-guided fuzzing of what reads octets from strangers: `python -m tests.fuzz TARGET --seconds N`."""
