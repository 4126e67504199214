"""External authorization: what a provider is asked, how it is asked, and what its answer does."""
