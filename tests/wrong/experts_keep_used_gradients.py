"""Wrong: the first backward after a step writes the experts that it reached, and leaves what the others held."""

from tmem.adapters import experts


def put(monkeypatch):
    right = experts._segments
    monkeypatch.setattr(experts, "_segments", lambda *a: right(*a)._replace(without=None))
