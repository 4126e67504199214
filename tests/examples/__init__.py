"""The examples are tested as their users would test them."""
