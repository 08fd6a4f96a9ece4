"""Base models: loading, running in pieces, and their chat templates."""
