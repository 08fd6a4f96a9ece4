"""The fast weights of many episodes: a bank of low-rank adapters under a model."""
