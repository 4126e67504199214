"""The L7 proxy of a service or namespace. Nothing is here yet: what asks for one is reported, by name."""
