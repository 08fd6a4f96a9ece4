"""The one place that talks to torch.library: schemas, the kernels, and which of them serves an op where.

Each op's plain-PyTorch reference is registered for every backend. C++ then takes over the CPU. CUDA C++, where it was
built, and Triton for the other ops take over the GPU. The dispatcher is the only switch.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import torch

_LIBRARY = torch.library.Library("tmem", "DEF")
_LIBRARY.define("cpu_instructions() -> str")
_CPU, _CUDA = (Path(__file__).parent.parent / f"libtmem_{name}.so" for name in ("cpu", "cuda"))
_in_python: set[str] = set()  # ops whose kernel for key CUDA was registered by `serve`


defined: list[str] = []  # every op, in the order in which they were declared


def define(schema: str, reference: Callable, fake: Callable, autocast: Callable | None = None) -> Callable:
    """Declare tmem::<schema>, serve it by `reference` until a kernel is loaded; `fake` gives shapes and dtypes.

    A kernel runs with torch.autocast switched off, so that what it calls returns the dtypes it writes;
    `autocast(*arguments)`, if given, is what the op's own arguments become where autocast is on.
    """
    name = schema.partition("(")[0]
    defined.append(name)
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tmem::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.tmem, name).default
    for device in _AUTOCAST:
        _LIBRARY.impl(name, functools.partial(_without_autocast, op, autocast), f"Autocast{device}")
    return op


_AUTOCAST = ("CPU", "CUDA", "MPS", "XPU")


def _without_autocast(op: Callable, change: Callable | None, *arguments, **named):
    if change is not None:
        arguments, named = change(*arguments, **named), {}
    with without_autocast():
        return op(*arguments, **named)


def without_autocast():
    """A context in which no dtype is chosen for what is called."""
    return torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS)


_AUTOCAST_KEYS = functools.reduce(
    lambda keys, device: keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}")),
    _AUTOCAST,
    torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined),
)


def differentiable(name: str, setup_context: Callable, backward: Callable) -> None:
    torch.library.register_autograd(f"tmem::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def serve(name: str, kernel: Callable) -> None:
    """Serve tmem::<name> on GPUs by a Triton launcher, where no compiled kernel does."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"tmem::{name}", "CUDA"):
        _LIBRARY.impl(name, kernel, "CUDA")
        _in_python.add(name)


def load_compiled() -> None:
    """Load the compiled kernels that are there, the CUDA library only where torch has CUDA; without them the references
    serve. A library that was built and does not load is an error."""
    if _CPU.exists():
        torch.ops.load_library(str(_CPU))
        _refuse_unknown_instructions()
    if torch.version.cuda and _CUDA.exists():
        torch.ops.load_library(str(_CUDA))


def _refuse_unknown_instructions() -> None:
    """TMEM_CPU in the environment is read here, once, and not in the middle of the first op."""
    try:
        torch.ops.tmem.cpu_instructions()
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None


def kernel_for(name: str, device_type: str) -> str:
    """Which kernel serves `tmem::<name>` for tensors on `device_type`: "C++ CPU (avx512)", "Triton", "CUDA C++", or
    "PyTorch reference". (fp64 on a GPU: always the reference.)

    Raises ValueError for an op that does not exist.
    """
    if not hasattr(torch.ops.tmem, name):
        raise ValueError(f"kernel_for: there is no op tmem::{name}")
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None or not torch._C._dispatch_has_kernel_for_dispatch_key(f"tmem::{name}", key):
        return "PyTorch reference"
    if key == "CPU":
        return f"C++ CPU ({torch.ops.tmem.cpu_instructions()})"
    return "Triton" if name in _in_python else "CUDA C++"
