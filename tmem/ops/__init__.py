"""The engine: low-rank adapters of many concurrent slots, forward, backward and step. Shapes and rules: tmem.reference.

Each function states and checks its arguments and calls `torch.ops.tmem.<name>`, which the dispatcher hands to exactly one
kernel; `kernel_for` tells which. `torch.ops.tmem.*` takes the same arguments and skips the Python checks (lora_linear
there also returns z).

LoRA: Hu et al. 2021 (arXiv 2106.09685). Rows of one batch cut into segments of different adapters: Chen et al. 2023 (Punica,
arXiv 2310.18547).

S slots, R stored rows of a factor, M rows of a batch, G segments; fp32, bf16, fp16 and fp64 are torch.float32,
torch.bfloat16, torch.float16 and torch.float64. HYPER: the settings of `bank_step_`, by column. SQUARED: the columns of a
gradient for each entry of its `squares`. OPS and SVD_PARTS: the names that `kernel_for` knows, and TOKEN_PARTS, of which a step
of decoding is made, on a CPU with CPU_PARTS; PASS_PARTS, which a pass over labels on a CPU takes.
"""

import importlib.util

from tmem.ops import _triton
from tmem.ops._layer import PARTS as LAYER_PARTS
from tmem.ops._registry import defined, kernel_for, load_compiled, serve
from tmem.ops.attend import attend
from tmem.ops.backward import lora_backward_
from tmem.ops.branches import attend_branches
from tmem.ops.copy import bank_copy_
from tmem.ops.decode import lora_decode_, lora_decode_multi_
from tmem.ops.expand import lora_expand_
from tmem.ops.gated_product import gated_product
from tmem.ops.glu import lora_glu
from tmem.ops.gram import SQUARED, lora_gram, lora_gram_
from tmem.ops.gram_step import lora_gram_step_
from tmem.ops.linear import lora_linear
from tmem.ops.norm import lora_norm
from tmem.ops.plan import lora_plan
from tmem.ops.product import row_linear
from tmem.ops.rms_norm import rms_norm
from tmem.ops.rope import rope_write_
from tmem.ops.rotate import rotate
from tmem.ops.rsvd import batched_rsvd
from tmem.ops.shrink import lora_shrink, lora_shrink_multi
from tmem.ops.step import HYPER, bank_step_
from tmem.ops.token_logp import token_logp

SVD_PARTS = tuple(name for name in defined if name.startswith("svd_"))  # what batched_rsvd is made of
TOKEN_PARTS = "lora_decode_multi_", "lora_norm", "lora_glu", "rope_write_"  # what a decoder's layer does for one token a row
CPU_PARTS = ("row_linear",)  # and on a CPU its products
PASS_PARTS = (  # what a decoder's layer does in a pass over labels on a CPU, beside its products
    "rms_norm", "rms_norm_backward", "gated_product", "gated_product_backward", "rotate", "attend_branches",
    "attend_branches_backward", "token_logp", "token_logp_backward",
)  # fmt: skip
OPS = tuple(name for name in defined if name not in (*SVD_PARTS, *LAYER_PARTS, *TOKEN_PARTS, *CPU_PARTS, *PASS_PARTS))

__all__ = [
    "CPU_PARTS",
    "HYPER",
    "OPS",
    "PASS_PARTS",
    "SQUARED",
    "SVD_PARTS",
    "TOKEN_PARTS",
    "attend",
    "attend_branches",
    "bank_copy_",
    "bank_step_",
    "batched_rsvd",
    "gated_product",
    "kernel_for",
    "lora_backward_",
    "lora_decode_",
    "lora_decode_multi_",
    "lora_expand_",
    "lora_glu",
    "lora_gram",
    "lora_gram_",
    "lora_gram_step_",
    "lora_linear",
    "lora_norm",
    "lora_plan",
    "lora_shrink",
    "lora_shrink_multi",
    "rms_norm",
    "rope_write_",
    "rotate",
    "row_linear",
    "token_logp",
]

load_compiled()
if importlib.util.find_spec("triton"):
    _triton.register(serve)
