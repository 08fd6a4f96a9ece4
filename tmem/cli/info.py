"""`tmem info`: versions, devices and kernels, or what was understood of a model."""

from __future__ import annotations

import json

import click
from rich.table import Table

from ..agent.config import DEFAULT_PRESET
from ..terminal.plain import Terminal


@click.command()
@click.option("--model", help="Show what tmem understood of this model: a folder, a .gguf file or a hub id.")
@click.option(
    "--preset", default=DEFAULT_PRESET, show_default=True, help="With --model: the preset whose adapted layers are shown."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def info(model: str | None, preset: str, as_json: bool) -> None:
    """Show versions, devices, and the kernel that serves each op.

    It also shows the default model and where it is kept.

    With --model it shows what tmem understood of that model: family and sizes, positions, end tokens, chat template,
    number formats, the adapter over it, and what the preset adapts. Compare it with what the model's makers say. Its
    weights are not read.
    """
    if model is None:
        facts, show = _facts(), _print
    else:
        from .understood import show, understood

        facts = understood(model, preset)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        show(facts)


def slow_on_gpu(kernels: dict[str, dict[str, str]]) -> str:
    """One sentence on the ops that plain PyTorch serves on the GPU; "" where there is no GPU or no such op."""
    slow = [op for op, kernel in kernels.get("cuda", {}).items() if kernel == "PyTorch reference"]
    if not slow:
        return ""
    needs = "the CUDA toolkit, which has nvcc," if all(op.startswith("svd_") for op in slow) else "Triton and the CUDA toolkit"
    return (
        f"Plain PyTorch serves {', '.join(slow)} on the GPU, which is slower than a kernel;"
        f" install {needs} and then tmem again with TMEM_CUDA=ON."
    )


def _facts() -> dict:
    """{"versions", "machine", "model": {"name", "folder", "cached", "adapter"}, "kernels": {device: {op: kernel}}}."""
    import torch

    from .. import machine, ops
    from ..models import loading
    from .understood import adapter_over

    try:
        folder, cached = loading.default_folder()
    except loading.ModelError:
        folder, cached = None, False
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    listed = {device: (*ops.OPS, *ops.TOKEN_PARTS, *ops.SVD_PARTS) for device in devices}
    listed["cpu"] += (*ops.CPU_PARTS, *ops.PASS_PARTS)  # a GPU takes torch's modules for these
    return {
        "versions": machine.versions(),
        "machine": machine.machine(),
        "model": {"name": loading.DEFAULT, "folder": folder and str(folder), "cached": cached, "adapter": adapter_over(None)},
        "kernels": {device: {op: ops.kernel_for(op, device) for op in listed[device]} for device in devices},
    }


def _print(facts: dict) -> None:
    from .understood import adapter_lines

    box, model, kernels = facts["machine"], facts["model"], facts["kernels"]
    gpus = [f"{gpu['name']}, sm_{gpu['sm']}, {gpu['memory_gib']} GiB" for gpu in box["gpus"]] or ["none"]
    lines = [
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("CPU", f"{box['cpu']}, {box['cores']} cores, {box['memory_gib']} GiB"),
        ("SIMD", f"{box['simd']}, bf16 {'by ' + box['bf16'].upper() if box['bf16'] else 'not native: fp32 is used'}"),
        *(("GPU", gpu) for gpu in gpus),
        ("model", model["name"]),
        ("kept in", model["folder"] or "not installed; `make` installs it"),
        ("", "" if model["cached"] or not model["folder"] else "not converted yet: happens at its first use"),
        *adapter_lines(model["adapter"]),
        ("", f"tmem info --model {model['name']} says what was understood of it, or of another"),
    ]
    console = Terminal()
    grid = Table.grid(padding=(0, 2))
    for name, value in lines:
        if value:
            grid.add_row(name, value)
    console.print(grid, highlight=False)
    table = Table("op", *kernels, title="\nkernel that serves each op", title_justify="left", title_style="")
    for op in kernels["cpu"]:
        table.add_row(op, *(kernels[device].get(op, "not taken") for device in kernels))
    console.print(table)
    if sentence := slow_on_gpu(kernels):
        console.print(f"\n{sentence}", highlight=False)
