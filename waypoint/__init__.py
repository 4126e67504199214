"""The L7 proxy of a service or namespace. Nothing is here yet: the node proxies refuse what asks for one, by name."""
