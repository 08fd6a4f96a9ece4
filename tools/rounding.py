"""What log-probabilities in bf16 are off by, and through which roundings: `python tools/rounding.py`, two minutes on one core.

The default model's weights are bf16 numbers throughout. What was said is sampled at temperature 1 after one prompt.

measured  mean |Δ log p| between the sampler's steps, the trainer's pass and the same weights in fp32
emulated  the model in fp32, where the named results alone are rounded to bf16; mean |Δ log p| to none rounded
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmem.agent.agent import Agent
from tmem.agent.config import LOOP_PRESET, agent_config
from tmem.agent.decode import decode
from tmem.models import forward as fw
from tmem.models.tiny import default_or_tiny

SAID, TEXTS = 48, 4  # tokens of a text; texts
PASSAGE = "Anna lives in Paris and works as a baker. Tom has a dog named Rex, and his sister Mary plays the violin. "
ALL = {"residual", "norm", "projection", "rotation", "scores", "attention", "gate", "logits"}
SETS = {
    "everything": ALL,
    "all but logits": ALL - {"logits"},
    "all but logits and residual sums": ALL - {"logits", "residual"},
    "what products read, nothing else": {"norm", "rotation", "attention", "gate"},
    "logits": {"logits"},
    "residual sums": {"residual"},
    "outputs of projections": {"projection"},
    "outputs of norms": {"norm"},
    "the rest of attention": {"rotation", "scores", "attention"},
}


def emulated(model, ids: Tensor, rounds: set[str]) -> Tensor:
    """Log-probabilities [B,T,V] of an fp32 Llama that rounds some results to bf16."""

    def r(x: Tensor, name: str) -> Tensor:
        return x.bfloat16().float() if name in rounds else x

    decoder, (rows, length) = fw.parts(model), ids.shape
    hidden = decoder.embed_tokens(ids)
    cos, sin = decoder.rotary_emb(hidden, torch.arange(length)[None])
    unseen = torch.ones(length, length).triu(1).bool()
    for layer in decoder.layers:
        own, n = layer.self_attn, r(layer.input_layernorm(hidden), "norm")
        q, k, v = (
            r(projection(n), "projection").view(rows, length, -1, own.head_dim).transpose(1, 2)
            for projection in (own.q_proj, own.k_proj, own.v_proj)
        )
        half = own.head_dim // 2
        q, k = (r(x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin, "rotation") for x in (q, k))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = r(q @ k.transpose(-1, -2) * own.scaling, "scores").masked_fill(unseen, -torch.inf)
        seen = r(r(scores.softmax(-1), "attention") @ v, "attention").transpose(1, 2).reshape(rows, length, -1)
        hidden = r(hidden + r(own.o_proj(seen), "projection"), "residual")
        n = r(layer.post_attention_layernorm(hidden), "norm")
        gate, up = (r(projection(n), "projection") for projection in (layer.mlp.gate_proj, layer.mlp.up_proj))
        hidden = r(hidden + r(layer.mlp.down_proj(r(r(F.silu(gate), "gate") * up, "gate")), "projection"), "residual")
    return r(model.lm_head(r(decoder.norm(hidden), "norm")), "logits").log_softmax(-1)


def main() -> None:
    model, tokenizer = default_or_tiny(False, "cpu", torch.bfloat16)
    agent = Agent.build(model, tokenizer, agent_config(LOOP_PRESET), slots=1)
    prompt = agent.chat.prompt(PASSAGE * 3)
    said = decode(model, [prompt] * TEXTS, end=-1, max_new=SAID, temperature=1.0, keys=list(map(str, range(TEXTS))))
    ids, sampler = torch.tensor([prompt + g.ids for g in said]), torch.tensor([g.logprobs for g in said])
    columns = list(range(len(prompt) - 1, ids.shape[1] - 1))

    def of(logp: Tensor) -> Tensor:
        return logp.detach().gather(-1, ids[:, len(prompt) :, None])[..., 0]

    def scored() -> Tensor:
        places = [(row, column) for row in range(TEXTS) for column in columns]
        logits = fw.token_logits(model, ids, *map(list, zip(*places)))
        return of(logits.float().log_softmax(-1).view(TEXTS, SAID, -1))

    model.requires_grad_(True)  # a pass that will be differentiated takes other kernels than one that is not
    trainer = scored()
    model.requires_grad_(False)
    with torch.no_grad():
        fresh, wide = scored(), agent.model.float()
        exact = of(emulated(wide, ids, set())[:, columns])
        pairs = {
            "sampler, trainer": sampler - trainer, "sampler, fp32": sampler - exact, "trainer, fp32": trainer - exact,
            "trainer, the same pass without gradients": trainer - fresh,
        }  # fmt: skip
        for name, off in pairs.items():
            print(f"measured  {name}: {off.abs().mean():.4f}")
        for name, rounds in SETS.items():
            print(f"emulated  {name}: {(of(emulated(wide, ids, rounds)[:, columns]) - exact).abs().mean():.4f}", flush=True)


if __name__ == "__main__":
    main()
