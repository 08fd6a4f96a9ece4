"""What was understood of a model: to be compared with what its makers say of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..agent.config import agent_config
from ..files.objects import object_in
from ..models import loading
from ..models.chat import Chat
from ..models.families import FAMILIES, SLIDING, kinds
from ..models.gguf.file import parts
from ..models.lora import CONFIG, WEIGHTS, plain_lora, read_folder
from ..rl.budget import Shape

_SYSTEM = {
    "none": "written when asked for, which tmem does not",
    "left out": "the template adds one by itself; tmem leaves it out",
    "kept": "the template adds one by itself that nothing closes; it stays",
    "refused": "the template takes none",
}
_CARD = "README.md"  # of an adapter's folder, as PEFT and the hub name it
_THOUGHT = {
    "none": "not opened by the template",
    "off": "turned off",
    "closed": "opened by the template; tmem closes them at once",
}


def understood(name: str, preset: str) -> dict:
    """Facts of the model that `name` means (see `loading.load_model`), of the adapter over it, and of what `preset` adapts.
    The model's weights are not read."""
    network, tokenizer = loading.outline(name)
    folder, config, chat = loading.resolve(name), network.config, Chat(tokenizer, network)
    shape = Shape.of(config)
    family, ropes = FAMILIES[config.model_type], config.rope_parameters
    window, of = getattr(config, "sliding_window", None), kinds(config)
    gguf = Path(name).expanduser()
    return {
        "model": name,
        "folder": str(folder),
        "converted_from": [str(p) for p in parts(gguf)] if gguf.suffix == ".gguf" and gguf.is_file() else [],
        "weights": {f.name: f.stat().st_size for f in sorted(folder.glob("*.safetensors"))},
        "family": config.model_type,
        "parameters": sum(p.numel() for p in network.parameters()),
        "layers": shape.layers, "hidden": shape.hidden, "intermediate": shape.ffn, "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads, "head_dim": shape.q // config.num_attention_heads,
        "activation": getattr(config, "hidden_activation", None) or config.hidden_act,
        "biases": sorted({n.rsplit(".", 2)[-2] for n, _ in network.named_parameters() if n.endswith(".bias")}),
        "context": config.max_position_embeddings,
        "window": {"tokens": window, "layers": of.count(SLIDING)} if SLIDING in of else None,
        "rope": {kind: _rope(ropes[kind]) for kind in dict.fromkeys(of)} if family.ropes else _rope(ropes),
        "family_settings": {key: getattr(config, key, ropes.get(key)) for key in sorted(family.read)},
        "dtype_on_disk": _dtypes(folder), "dtype_at_load": str(loading.default_dtype()).removeprefix("torch."),
        "tied": shape.tied,
        "vocabulary": len(tokenizer), "embeddings": shape.vocab,
        "ends": {i: tokenizer.convert_ids_to_tokens(i) for i in sorted(chat.ends)},
        "end_of_answer": tokenizer.convert_ids_to_tokens(chat.end),
        "begin": tokenizer.bos_token,
        "template": _template(chat),
        "adapter": adapter_over(name),
        "adapted": _adapted(shape, preset),
    }  # fmt: skip


def _rope(said: dict) -> dict:
    """Positions of one kind of layer."""
    others = {k: v for k, v in said.items() if k not in ("type", "rope_type", "rope_theta")}
    return {"type": said["rope_type"], "theta": said["rope_theta"], **others}


def adapter_over(name: str | None) -> dict | None:
    """The adapter that lies over the model that `name` means unless another is asked for; None for none.

    Raises FileNotFoundError for a missing file, ValueError for an adapter that is no plain LoRA.
    """
    _, folder = loading.apart(name, loading.PACKAGED)
    if folder is None:
        return None
    files = read_folder(folder, (CONFIG, WEIGHTS))
    rank, _ = plain_lora(object_in(files[CONFIG], folder / CONFIG), folder / CONFIG)
    return {
        "name": loading.PACKAGED if folder == loading.WRITER else str(folder),
        "folder": str(folder), "rank": rank, "bytes": len(files[WEIGHTS]), "card": _first_line(folder / _CARD),
    }  # fmt: skip


def _first_line(card: Path) -> str | None:
    """The first line of Markdown behind a YAML header, without the marks of a heading; None where there is none."""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    if lines[:1] == ["---"]:
        lines = lines[lines.index("---", 1) + 1 :] if "---" in lines[1:] else []
    return next((line.lstrip("# ").rstrip() for line in lines if line.strip("# ")), None)


def adapter_lines(adapter: dict | None) -> list[tuple[str, str]]:
    """What `adapter_over` found, as lines of a table."""
    if adapter is None:
        return [("adapter", "none")]
    packaged = adapter["name"] == loading.PACKAGED
    name = f"{loading.PACKAGED}, which comes with tmem" if packaged else adapter["name"]
    lines = [("adapter", f"{name}: rank {adapter['rank']}, {adapter['bytes'] / 1e6:.1f} MB")]
    return lines + [("", line) for line in (adapter["card"], "--adapter none leaves it out" if packaged else None) if line]


def _dtypes(folder: Path) -> dict[str, int]:
    """Tensors by number format, from the weights' headers."""
    from safetensors import safe_open

    found: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())
    return dict(found.most_common())


def _template(chat: Chat) -> dict | None:
    """None for a model without one. `prompt`: what a question becomes."""
    if chat.template is None:
        return None
    t = chat.template
    return {"system": t.system, "thought": t.thought, "prompt": f"{t.before}QUESTION{t.after}", "after_answer": t.closing}


def _adapted(shape: Shape, preset: str) -> dict:
    """What a preset adapts, or why it is refused."""
    adapter = agent_config(preset).adapter
    try:
        last, adapted = min(adapter.last_layers, shape.layers), shape.adapted(adapter.targets, adapter.last_layers)
    except ValueError as error:
        return {"preset": preset, "refused": str(error)}
    width = sum(experts * (outer + inner * adapter.train_a) for _, inner, outer, experts in adapted)
    return {
        "preset": preset, "targets": list(dict.fromkeys(name for name, *_ in adapted)),
        "layers": [shape.layers - last, shape.layers - 1], "matrices": sum(experts for *_, experts in adapted),
        "rank": adapter.rank, "parameters_per_slot": adapter.rank * width,
    }  # fmt: skip


def show(facts: dict) -> None:
    """Print the facts; fits 80 columns."""
    from rich.table import Table

    from ..terminal.plain import Terminal

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _lines(facts):
        grid.add_row(name, value)
    Terminal().print(grid, highlight=False)


def _positions(kind: str, rope: dict) -> str:
    scaling = "".join(f", {k} {v}" for k, v in rope.items() if k not in ("type", "theta"))
    return f"{rope['type']}, theta {rope['theta']:g}{scaling}" + (f" ({kind})" if kind else "")


def _lines(facts: dict) -> list[tuple[str, str]]:
    rope, adapted, template = facts["rope"], facts["adapted"], facts["template"]
    ropes = {"": rope} if "type" in rope else rope
    window, settings = facts["window"], ", ".join(f"{key} {value}" for key, value in facts["family_settings"].items())
    sight = "no window" if window is None else f"{window['layers']} layers see the last {window['tokens']:,} tokens"
    size = sum(facts["weights"].values()) / 2**20
    biases = f", biases on {', '.join(facts['biases'])}" if facts["biases"] else ""
    unused = facts["embeddings"] - facts["vocabulary"]
    spare = f", {unused} unused" if unused else ""
    formats = ", ".join(f"{name} ({count} tensors)" for name, count in facts["dtype_on_disk"].items())
    lines = [
        ("model", facts["model"]),
        *(("converted from", file) for file in facts["converted_from"]),
        ("folder", facts["folder"]),
        ("weights", f"{', '.join(facts['weights'])}: {size:,.0f} MiB, {facts['parameters']:,} parameters"),
        ("family", f"{facts['family']}, {facts['activation']}{biases}"),
        ("sizes", f"{facts['layers']} layers, hidden {facts['hidden']}, intermediate {facts['intermediate']}"),
        ("attention", f"{facts['heads']} heads of {facts['head_dim']}, {facts['kv_heads']} of keys and values, {sight}"),
        ("context", f"{facts['context']:,} tokens"),
        *(("rope", _positions(kind, said)) for kind, said in ropes.items()),
        *([("settings", settings)] if settings else []),
        ("dtype", f"on disk {formats}; at load {facts['dtype_at_load']}"),
        ("vocabulary", f"{facts['vocabulary']:,} tokens, {facts['embeddings']:,} embeddings{spare}"),
        ("embeddings", "tied to the head" if facts["tied"] else "apart from the head"),
        ("a text ends at", ", ".join(f"{text} ({index})" for index, text in facts["ends"].items())),
        ("an answer with", facts["end_of_answer"]),
        *adapter_lines(facts["adapter"]),
    ]
    if template is None:
        lines.append(("template", "none: asked as User: ... Assistant:"))
    else:
        lines += [
            ("prompt", repr(template["prompt"])[1:-1]),
            ("system turn", _SYSTEM[template["system"]]),
            ("thoughts", _THOUGHT[template["thought"]]),
        ]
    if "refused" in adapted:
        return [*lines, ("adapted", f"nothing, preset {adapted['preset']} is refused: {adapted['refused']}")]
    first, last = adapted["layers"]
    return lines + [
        ("adapted", f"{', '.join(adapted['targets'])} of layers {first} to {last} (preset {adapted['preset']})"),
        ("a slot", f"{adapted['matrices']} matrices of rank {adapted['rank']}, {adapted['parameters_per_slot']:,} parameters"),
    ]
