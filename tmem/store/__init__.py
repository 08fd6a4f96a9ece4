"""Many memories in a folder: what each was told and its fast weights, kept so that a kill at any moment loses nothing."""
