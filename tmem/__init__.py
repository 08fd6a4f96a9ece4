"""tmem: an agent whose memory is a row of fast weights, written while it reads and learned from what later pays."""

__version__ = "0.1.0"


def __getattr__(name):
    if name == "Memory":
        from tmem.memory import Memory

        return Memory
    raise AttributeError(f"module 'tmem' has no attribute {name!r}")
