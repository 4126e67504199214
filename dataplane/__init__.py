"""What both data planes are made of: the mesh state, the plumbing of a data worker, its supervision."""
