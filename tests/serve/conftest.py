"""A server on a tiny model, one for all tests of a file."""

import pytest


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(client, store)"""
    from tiny_server import serving

    with serving(tmp_path_factory.mktemp("served") / "store") as found:
        yield found


@pytest.fixture
def client(served):
    return served[0]
