"""A real systemd as the first process of private namespaces, and the commands of the documentation in it."""
