"""Tenants: who may call, by a key, and which memories are whose.

In the store a tenant's memory is called TENANT/NAME. What a request calls a memory is put behind its own tenant's name, and a
tenant's name has no slash. So no request can name another's memory: it is as unknown as any that was never made.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from starlette.requests import Request
from starlette.types import Scope

from ..store.store import MOST_NAME, MemoryStore
from .fields import Refused
from .keys import OPERATOR

MEMORIES = 10_000  # that a tenant may have
OPEN = ("/", "/health")  # what needs no key: the page asks for one, and a load balancer has none


@dataclass(frozen=True)
class Tenant:
    """Who calls.

    begins  what its memories' names begin with in the store; "": it has them all
    most    how many it may have; None: any number
    """

    begins: str
    most: int | None = None

    def inside(self, name: str) -> str:
        """What the store calls its memory of this name. Raises Refused for a name that none can have."""
        room = MOST_NAME - len(self.begins)
        if self.begins and (not name.strip() or len(name) > room):
            raise Refused(f"a memory's name has 1 to {room} characters, got {name!r:.60}.", "name")
        return self.begins + name

    def outside(self, name: str) -> str:
        """What the tenant calls a memory of the store."""
        return name.removeprefix(self.begins)

    def told(self, sentence: str) -> str:
        """A sentence that quotes the name of a memory of the store first, with the tenant's own name for it."""
        return re.sub(rf"(['\"]){re.escape(self.begins)}", r"\1", sentence, count=1)

    def room_for(self, name: str, store: MemoryStore) -> None:
        """Raises Refused where a memory of this name would be one too many."""
        if self.most is not None and store.count(self.begins) >= self.most and name not in store:
            raise Refused(f"there are {self.most} memories, and no more may be made; delete one.", "name", 403, "memory_limit")


class Tenants:
    """All that may call. Without keys everybody is one tenant, who has every memory.

    A key is kept as its digest. Each is compared with all, in constant time.
    """

    def __init__(self, keys: Sequence[tuple[str, str]] = (), most: int = MEMORIES):
        """keys: name and key, each. most: memories that a tenant of a key may have."""
        self.everybody = None if keys else Tenant("")
        self._tenants = [(_digest(key.encode()), name, Tenant(f"{name}/", most)) for name, key in keys]

    def caller(self, scope: Scope) -> Tenant | None:
        """Who calls. Raises Refused without a key that may call this."""
        if self.everybody is not None:
            return self.everybody
        path, found = scope["path"], None
        given = _digest(_given(scope))
        for digest, name, tenant in self._tenants:
            if hmac.compare_digest(digest, given) and (name == OPERATOR) == (path == "/metrics"):
                found = tenant
        if found is None and path not in OPEN:
            said = "a key is needed here, and the request has none that is known; send one as Authorization: Bearer KEY."
            raise Refused(said, status=401, code="invalid_api_key")
        return found


def tenant_of(request: Request) -> Tenant:
    """The tenant that a request is of."""
    return request.scope["tenant"]


def memory_of(request: Request) -> str:
    """What the store calls the memory that a request's path names. Raises Refused."""
    return tenant_of(request).inside(request.path_params["name"])


def _given(scope: Scope) -> bytes:
    """The key in a request's Authorization header; empty where there is none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.partition(b" ")
            return key.strip() if kind.lower() == b"bearer" else b""
    return b""


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=32).digest()
