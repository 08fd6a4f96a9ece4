"""One GRPO step of TRL's trainer with PEFT, at the shapes and token counts of `full_step`, where TRL is installed.

TRL has no episodes: no adapter of each rollout's own, no online update, no answers under what was learned. What both do is
compared: sampling, log-probabilities and the update of a policy adapter. TRL is given the prompts of the writes, a group of
completions each, and lets every one of them reach the token limit. Answers, a few tokens each, are left out. So the numbers to
compare are those for a token that was generated; tmem's are without the seconds of `learn`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..models import loading
from ..rl.config import TrainConfig


def measured(train: TrainConfig, most: int, model, prompts: list[list[int]], note: Callable[[str], None]) -> dict[str, Any]:
    """{"version", "seconds", "tokens", "tokens_per_second", "prompt_tokens", "micro_batch"} of a step after one like it; where
    TRL is not installed, {"installed": False}.

    prompts: token ids, of each `train.rl_group` completions of `most` tokens. `note` is told what begins, and may raise to end
    it.
    """
    try:
        installed = version("trl")
    except PackageNotFoundError:
        return {"installed": False}
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = loading.load_tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    device = next(model.parameters()).device.type
    size, longest = len(prompts) * train.rl_group, max(map(len, prompts)) + most
    fits = max(1, train.micro_tokens // longest)
    micro = max(n for n in range(1, min(fits, size) + 1) if size % n == 0)
    starts: list[float] = []

    class Times(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            note(f"TRL: step {len(starts) + 1}")
            starts.append(time.perf_counter())

        def on_step_end(self, args, state, control, **_):
            if device == "cuda":
                torch.cuda.synchronize()
            starts[-1] = time.perf_counter() - starts[-1]

    with tempfile.TemporaryDirectory(prefix="tmem-trl-") as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],  # each has an advantage
            args=GRPOConfig(
                output_dir=folder, max_steps=2, per_device_train_batch_size=micro, gradient_accumulation_steps=size // micro,
                num_generations=train.rl_group, max_completion_length=most, generation_kwargs={"min_new_tokens": most},
                temperature=1.0, beta=0.0, epsilon=train.rl_clip, learning_rate=train.rl_lr, max_grad_norm=train.grad_clip,
                gradient_checkpointing=train.checkpointing, bf16=model.dtype == torch.bfloat16, use_cpu=device == "cpu",
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=train.seed,
            ),
            train_dataset=Dataset.from_list([{"prompt": tokenizer.decode(ids)} for ids in prompts]),
            processing_class=tokenizer,
            callbacks=[Times()],
            peft_config=LoraConfig(r=train.policy_rank, lora_alpha=2 * train.policy_rank, target_modules="all-linear"),
        )  # fmt: skip
        trainer.train()
    tokens, seconds = size * most, starts[-1]
    return {
        "installed": True, "version": installed, "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds,
        "prompt_tokens": train.rl_group * sum(map(len, prompts)), "micro_batch": micro,
    }  # fmt: skip
