"""The one place that talks to torch.library: schemas, the compiled kernels, and which kernel serves an op where.

Each op's plain-PyTorch reference is registered for every backend; a compiled library then takes over its own device
through the dispatcher.
"""

from collections.abc import Callable
from pathlib import Path

import torch

_LIBRARY = torch.library.Library("tmem", "DEF")
_LIBRARY.define("cpu_instructions() -> str")
_COMPILED = Path(__file__).parent.parent / "libtmem_cpu.so"


def define(schema: str, reference: Callable, fake: Callable) -> Callable:
    """Declare tmem::<schema>, serve it by `reference` until a kernel is loaded; `fake` gives shapes and dtypes."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tmem::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.tmem, name).default


def differentiable(name: str, setup_context: Callable, backward: Callable) -> None:
    torch.library.register_autograd(f"tmem::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def load_compiled() -> None:
    """Load the C++ kernels if they were built. A library that is there and does not load is an error."""
    if _COMPILED.exists():
        torch.ops.load_library(str(_COMPILED))


def kernel_for(name: str, device_type: str) -> str:
    """Which kernel serves tmem::<name> for tensors on `device_type`: "C++ CPU (avx512)", "PyTorch reference", ...

    Raises ValueError for an op that does not exist.
    """
    if not hasattr(torch.ops.tmem, name):
        raise ValueError(f"kernel_for: there is no op tmem::{name}")
    if device_type == "cpu" and torch._C._dispatch_has_kernel_for_dispatch_key(f"tmem::{name}", "CPU"):
        return f"C++ CPU ({torch.ops.tmem.cpu_instructions()})"
    return "PyTorch reference"
