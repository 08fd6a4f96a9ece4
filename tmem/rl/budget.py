"""The budget of a training run on each rank: bytes held, bytes sent and operations; and what memories over a model take.

Counted where that is possible, else by the formula that stands beside the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters.layout import lay_out, padded
from ..agent.config import AgentConfig
from ..agent.decode import MAX_ROWS, ROOM
from ..agent.learn import MAX_TOKENS
from ..agent.prefill import at_once, widths
from ..agent.steps import bucket, extent
from ..models.families import FAMILIES, FUSED, joined
from ..models.forward import ROWS, shown
from ..models.quantised import weight_bytes
from .config import TrainConfig

ASKED = 48  # tokens of a question as it is asked, with the chat template, about
TAUGHT = 48  # of a pair as it is learned, about
WORDS = 64  # around a passage that is written, at most


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. kv: key and value heads' width together, heads_kv · head_dim. fused: see families.Family.

    experts: how many each layer has, 0 without; inner: the width between their projections; dense: layers that have none;
    chosen: how many a token passes.
    """

    hidden: int
    ffn: int
    layers: int
    q: int
    kv: int
    vocab: int
    tied: bool
    fused: tuple[str, ...] = ()
    experts: int = 0
    inner: int = 0
    dense: tuple[int, ...] = ()
    chosen: int = 0

    @classmethod
    def of(cls, config) -> Shape:
        """From a Hugging Face config."""
        head, family = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads, config.model_type
        mixture: tuple = ()
        if FAMILIES[family].experts:
            every, without = config.decoder_sparse_step, config.mlp_only_layers or ()
            dense = tuple(i for i in range(config.num_hidden_layers) if i in without or (i + 1) % every)
            mixture = config.num_experts, config.moe_intermediate_size, dense, config.num_experts_per_tok
        return cls(
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads * head,
            config.num_key_value_heads * head, config.vocab_size, config.tie_word_embeddings,
            FAMILIES[family].fused, *mixture,
        )  # fmt: skip

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer, experts left out."""
        h, f = self.hidden, self.ffn
        sizes = {
            "q_proj": (h, self.q), "k_proj": (h, self.kv), "v_proj": (h, self.kv), "o_proj": (self.q, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h),
        }  # fmt: skip
        for name in self.fused:
            parts = [sizes.pop(part) for part in FUSED[name]]
            sizes[name] = h, sum(outer for _, outer in parts)
        if self.experts:
            del sizes["gate_proj"], sizes["up_proj"], sizes["down_proj"]
        return sizes

    def layer(self, index: int) -> dict[str, tuple[int, int, int]]:
        """(in, out, experts) of what can be adapted in one decoder layer: linear layers, and the projections of all experts."""
        h, f, sizes = self.hidden, self.ffn, {name: (*size, 1) for name, size in self.sizes().items()}
        if self.experts and index in self.dense:
            return {**sizes, "gate_proj": (h, f, 1), "up_proj": (h, f, 1), "down_proj": (f, h, 1)}
        if self.experts:
            sizes |= {"gate_up_proj": (h, 2 * self.inner, self.experts), "down_proj": (self.inner, h, self.experts)}
        return sizes

    def adapted(self, targets: Sequence[str], last_layers: int) -> list[tuple[str, int, int, int]]:
        """(name, in, out, experts) of what a preset adapts, layer by layer. Raises ValueError for what this decoder lacks."""
        layers = [self.layer(i) for i in range(self.layers)]
        known = {name: None for layer in layers for name in layer}
        parts = {part for name in known for part in FUSED.get(name, ())}
        if others := [target for target in targets if target not in known and target not in parts]:
            raise ValueError(f"targets: {others[0]!r} is no linear layer of a decoder; expected some of {', '.join(known)}.")
        last = layers[max(0, self.layers - last_layers) :]
        found = [(name, *layer[name]) for layer in last for name in joined(targets, layer) if name in layer]
        if not found:
            raise ValueError(f"targets: the last {last_layers} layers have no {' or '.join(targets)}; widen last_layers.")
        return found

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of all linear layers of the decoder; experts are none."""
        layers = (self.layer(i).values() for i in range(self.layers))
        return [(inner, outer) for layer in layers for inner, outer, experts in layer if experts == 1]

    @property
    def linear(self) -> int:
        """Parameters of all linear layers of the decoder."""
        return sum(i * o for i, o in self.linears())

    @property
    def mixed(self) -> int:
        """Parameters of all experts, and of what chooses among them."""
        each = self.hidden * (3 * self.inner + 1)
        return (self.layers - len(self.dense)) * self.experts * each if self.experts else 0

    @property
    def parameters(self) -> int:
        others = self.layers * 2 * self.hidden + self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden
        return self.linear + self.mixed + others


# From the models' published config.json.
SHAPES = {
    "llama-2-7b": Shape(4096, 11008, 32, 4096, 4096, 32000, False),
    "qwen3-4b": Shape(2560, 9728, 36, 4096, 1024, 151936, True),
    "qwen3-8b": Shape(4096, 12288, 36, 4096, 1024, 151936, False),
}


@dataclass(frozen=True)
class Item:
    """Bytes on one rank, and the arithmetic behind them."""

    name: str
    bytes: float
    why: str


def row(shape: Shape, agent: AgentConfig) -> int:
    """P: fp32 elements of one slot, laid out as the bank lays them out."""
    adapter, parts = agent.adapter, []
    for _, inner, outer, experts in shape.adapted(adapter.targets, adapter.last_layers):
        parts.append((adapter.rank * (padded(inner) * adapter.train_a + padded(outer)), experts))
    return lay_out(*zip(*parts))[1]


def trained(shape: Shape, train: TrainConfig) -> int:
    """Parameters of θ0 that are trained: all, or A and B of every linear layer."""
    if train.policy == "full":
        return shape.parameters
    return train.policy_rank * sum(i + o for i, o in shape.linears())


def weights(shape: Shape, bits: str | None, compute: int) -> list[Item]:
    """Those that compute, in `compute` bytes a number; bits: of the decoder's linear layers."""
    if bits is None:
        return [Item("weights that compute", compute * shape.parameters, f"{compute} · {shape.parameters:,} parameters")]
    few = sum(weight_bytes(bits, outer, inner, compute) for inner, outer in shape.linears())
    others, largest = shape.parameters - shape.linear, max(inner * outer for inner, outer in shape.linears())
    return [
        Item(f"linear layers in {bits}", few, f"{8 * few / shape.linear:.2f} bits · {shape.linear:,} weights"),
        Item(
            "experts, " * bool(shape.mixed) + "embeddings, norms and head",
            compute * others,
            f"{compute} · {others:,} parameters",
        ),
        Item("one layer as it computes", compute * largest, f"{compute} · {largest:,}, made anew each time"),
    ]


def keys_and_values(
    shape: Shape, compute: int, *, rows: int, prompt: int, most: int, begin: int = 0, beginnings: int = 0
) -> list[Item]:
    """Those of prompts while one pass reads them, and of the steps after them, at fixed addresses as on a GPU.

    rows        prompts that are gone on with together; a pass reads prefill.at_once of them
    prompt      tokens of each, all different
    most        tokens generated after each
    begin       of the tokens of each, how many are read first; `beginnings`, those that differ, are kept
    """
    token = shape.layers * 2 * shape.kv * compute
    first, then = widths(range(prompt), begin)
    read, kept = shown(first + then), beginnings * shown(first)
    places, columns = extent(rows, -(-(first + then + most) // ROOM) * ROOM)
    each, some = f"{shape.layers} layers · 2 · {shape.kv} · {compute}", min(rows, at_once(first, then))
    said = f"({some} rows · {read} tokens + {beginnings} · {shown(first)})" if kept else f"{some} rows · {read} tokens"
    out = [
        Item("keys and values of prompts", (some * read + kept) * token, f"{said} · {each}"),
        Item("keys and values of steps", places * columns * token, f"{places} rows · {columns} tokens · {each}"),
    ]
    if places > ROWS:
        half, name = bucket(places // 2), "those that half of the rows go on with"
        out.append(Item(name, half * columns * token, f"{half} rows · {columns} tokens · {each}"))
    return out


def reading(shape: Shape, tokens: int, compute: int) -> Item:
    """What a pass without gradients holds at its peak: a layer's input, the sum behind its attention and the norm of that, and
    three times what the MLP makes of a token. Attention keeps no mask and no scores."""
    wide = 3 * shape.hidden + 3 * shape.ffn
    return Item("a pass that reads (estimate)", tokens * wide * compute, f"{tokens} tokens · {wide:,} elements · {compute}")


def _read(rows: int, prompt: int, begin: int = 0) -> int:
    """Tokens of the largest pass that reads so many prompts."""
    first, then = widths(range(prompt), begin)
    return max(min(rows, at_once(first, then)) * then, rows * first)


def _writing(shape: Shape, compute: int, agent: AgentConfig, rollouts: int) -> list[Item]:
    """Keys and values of writes: of one reply each, or of many to a passage that is read first."""
    passage, replies = agent.write.window + WORDS, agent.write.replies
    most, rows = agent.write.max_new, min(rollouts * replies, MAX_ROWS)
    if replies == 1:
        kept = keys_and_values(shape, compute, rows=rows, prompt=passage, most=most)
        return [*kept, reading(shape, _read(rows, passage), compute)]
    asked = passage + ASKED
    kept = keys_and_values(shape, compute, rows=rows, prompt=asked, most=most, begin=passage, beginnings=rollouts)
    return [*kept, reading(shape, _read(min(rows, rollouts), asked, passage), compute)]


def activations(
    shape: Shape, tokens: int, layers: int, compute: int, *, again: bool = False, frozen: bool = False, packed: bool = False
) -> Item:
    """What a pass over `tokens` keeps in `layers` layers for its backward.

    again: they are computed again there. frozen: no weight is trained, so that what one multiplies need not be kept.
    packed: rows hold several texts, whose attention takes keys and values for every head.
    Norms keep what they read and what they make, in fp32. Attention keeps queries, keys, values and what it makes.
    """
    wide = 2 * shape.q + 2 * (shape.q if packed else shape.kv) + (3 if frozen else 4) * shape.ffn
    whole = (2 if compute == 4 else 4) * shape.hidden + (0 if frozen else 4 * shape.hidden) + wide
    kept = shape.hidden if again else whole
    return Item(
        "activations of a pass (estimate)", (layers * kept + whole * again) * tokens * compute,
        f"{tokens} tokens · {layers} layers · {kept:,} elements" + (" + one layer again" * again),
    )  # fmt: skip


def of_memories(
    shape: Shape, agent: AgentConfig, *, memories: int, together: int = 1, bits: str | None = None, bf16: bool = True,
    context: int = ASKED,
) -> list[Item]:  # fmt: skip
    """The memory of a GPU that holds memories over one model. together: how many are taught, or asked, at once. context: tokens
    of what each is asked."""
    compute, p = 2 if bf16 else 4, row(shape, agent)
    adapter = agent.adapter
    layers = min(adapter.last_layers, shape.layers)
    matrices = 2 + 2 * (agent.adapter.optimizer == "adamw")
    each, copy = 4 * matrices + 2 * bf16, " + one in bf16" * bf16
    adapted = shape.adapted(adapter.targets, adapter.last_layers)
    shared = 0 if adapter.train_a else sum(inner for _, inner, *_ in adapted)
    tokens = min(MAX_TOKENS, together * agent.learn.batch * TAUGHT)
    return [
        *weights(shape, bits, compute),
        Item("memories", memories * each * p, f"{memories} · {matrices} matrices in fp32{copy}, P = {p:,} each"),
        Item("A", adapter.rank * shared * (4 + 2 * bf16), "shared by all"),
        *keys_and_values(shape, compute, rows=together, prompt=context, most=agent.answer.max_new),
        reading(shape, _read(together, context), compute),
        activations(shape, tokens, layers, compute, frozen=True, packed=True),
        Item("logits of a pass", 2 * 4 * (tokens // 4) * shape.vocab,
             f"with gradient 2 · 4 · {tokens // 4} labels · {shape.vocab:,}"),
    ]  # fmt: skip


def per_rank(
    shape: Shape, agent: AgentConfig, train: TrainConfig, *, ranks: int = 1, writes: int = 6, bf16: bool = True,
    bits: str | None = None,
) -> list[Item]:  # fmt: skip
    """The memory of one rank through a GRPO step. writes: per episode; bf16: weights compute in it, else in fp32; bits: of the
    decoder's linear layers, which θ0, an adapter, then lies beside."""
    p, learned = row(shape, agent), trained(shape, train)
    compute = 2 if bf16 else 4
    rollouts = -(-train.rl_episodes // ranks) * train.rl_group
    sharded = train.layout == "fsdp"
    share = ranks if sharded else 1
    matrices = 2 + 2 * (agent.adapter.optimizer == "adamw")
    tokens = train.micro_tokens
    context = agent.write.window + agent.write.max_new
    generated = min(tokens, tokens * agent.write.max_new // context)
    out = [
        *weights(shape, bits, compute),
        Item("θ0, gradients, moments in fp32", 16 * learned / share,
             f"16 · {learned:,}" + (f" / {ranks} ranks" if sharded else "")),
    ]  # fmt: skip
    if bits is not None:
        out.append(Item("adapter beside the weights", compute * learned, f"{compute} · {learned:,}"))
    elif train.policy == "lora":
        out.append(Item("weights without the adapter", compute * shape.linear, f"{compute} · {shape.linear:,}"))
    if not sharded and ranks > 1:
        out.append(Item("DDP's buckets", 4 * learned, f"4 · {learned:,}"))
    if train.rl_kl:
        size = 4 / share if sharded else 4 if train.policy == "lora" else compute
        out.append(Item("frozen reference", size * learned, f"{size:g} · {learned:,}"))
    out += [
        Item("bank", rollouts * matrices * p * 4, f"{rollouts} slots · {matrices} matrices · P = {p:,} · 4"),
        Item("snapshots of Δ", rollouts * writes * p * 4 * (train.replay == "snapshot"),
             f"{rollouts} rollouts · {writes} writes · P · 4" if train.replay == "snapshot" else "none: learned again"),
        *_writing(shape, compute, agent, rollouts),
        activations(shape, tokens, shape.layers, compute, again=train.checkpointing),
        Item("logits of a pass", 2 * compute * generated * shape.vocab,
             f"with gradient 2 · {compute} · {generated} generated tokens · {shape.vocab:,}"),
    ]  # fmt: skip
    return out


def passes(agent: AgentConfig, train: TrainConfig, *, ranks: int, writes: int = 6, questions: int = 4) -> int:
    """Micro-batches of one rank's update."""
    rollouts = -(-train.rl_episodes // ranks) * train.rl_group
    tokens = writes * (agent.write.window + agent.write.max_new) + questions * (ASKED + agent.answer.max_new)
    return -(-rollouts * tokens // train.micro_tokens)


def sent(shape: Shape, train: TrainConfig, *, ranks: int, passes: int, bf16: bool = True) -> Item:
    """Bytes that one rank sends in a step whose updates have `passes` micro-batches each.

    No Δ, no snapshot and no rollout leaves its rank.
    """
    n, compute, part = trained(shape, train), 2 if bf16 else 4, (ranks - 1) / ranks
    if train.layout == "fsdp":
        scatters = train.rl_updates * passes
        # Forward and backward of each pass, forward of the reference in the first update; once for the next rollouts.
        gathers = 2 * scatters + bool(train.rl_kl) * passes + 1
        return Item("sent per step", part * n * (compute * gathers + 4 * scatters),
                    f"{gathers} all-gathers of {compute}·N, {scatters} reduce-scatters of 4·N")  # fmt: skip
    often = f"{train.rl_updates} all-reduces" if train.rl_updates > 1 else "one all-reduce"
    return Item("sent per step", 2 * part * 4 * n * train.rl_updates, f"{often} of 4·N, whatever the number of passes")


def flops(
    shape: Shape, agent: AgentConfig, train: TrainConfig, *, ranks: int, writes: int = 6, pairs: int = 16, questions: int = 4
) -> dict[str, float]:
    """Floating-point operations of one rank's GRPO step, by part: 2 a parameter and token forward, 4 backward (2 where W is
    frozen, 2 more where activations are computed again), the head only where it is needed. Every update of a batch counts, and
    a pass forward of the reference."""
    rollouts = -(-train.rl_episodes // ranks) * train.rl_group
    passed_over = (shape.layers - len(shape.dense)) * (shape.experts - shape.chosen) * 3 * shape.hidden * shape.inner
    body = shape.parameters - passed_over - shape.vocab * shape.hidden * (1 if shape.tied else 2)
    head = shape.vocab * shape.hidden
    window, new = agent.write.window, agent.write.max_new
    adapted = body * min(agent.adapter.last_layers, shape.layers) / shape.layers
    generated = rollouts * (writes * new * agent.write.replies + questions * agent.answer.max_new)
    read = rollouts * (writes * window + questions * ASKED)
    tokens = rollouts * writes * pairs * 48 * agent.learn.epochs
    update = (8.0 if train.checkpointing else 6.0) - 2.0 * (train.policy == "lora")
    update = update * train.rl_updates + 2.0 * bool(train.rl_kl)
    return {
        "read": 2.0 * body * read,
        "generate": 2.0 * (body + head) * generated,
        "learn": 4.0 * adapted * tokens,
        "update": update * (body * (read + generated) + head * generated),
    }
