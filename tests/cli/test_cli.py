"""The command's frame: help that teaches, errors as one sentence, Ctrl-C, and what `tmem info` tells."""

import json
import os
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner
from tiny import model
from tiny_chat import TEMPLATES, tokenizer
from tiny_gguf import write

from tmem import cli
from tmem.agent.config import agent_config
from tmem.agent.loop import Agent
from tmem.models import loading
from tmem.models.chat import Chat
from tmem.models.lora import fingerprint
from tmem.models.merge import Lora, save_lora


@pytest.fixture
def verb():
    """Adds a throw-away verb to the command: verb(f) runs f as `tmem tried` and gives the result."""

    def run(body, **env):
        cli.main.add_command(click.command("tried")(body))
        return CliRunner().invoke(cli.main, ["tried"], env=env)

    yield run
    cli.main.commands.pop("tried", None)


def raises(error):
    def body():
        raise error

    return body


def test_bitsandbytes_does_not_tell_of_a_kernel_that_nobody_calls(verb, caplog):
    from bitsandbytes.backends.cpu import ops

    caplog.clear()
    assert verb(lambda: ops.logger.warning("Failed to load CPU gemm_4bit_forward")).exit_code == 0
    assert not caplog.records
    verb(lambda: ops.logger.error("what is not to be lost"))
    assert [record.getMessage() for record in caplog.records] == ["what is not to be lost"]


def test_help_names_every_verb():
    shown = CliRunner().invoke(cli.main, ["--help"]).output
    assert "Examples:" in shown
    for name in cli.main.list_commands(None):
        assert f"  {name} " in shown and cli.main.get_command(None, name).help, name


def test_the_examples_of_eval_are_commands_that_it_takes():
    evaluate = cli.main.get_command(None, "eval")
    examples = [line.split()[2:] for line in evaluate.help.splitlines() if line.strip().startswith("tmem eval")]
    assert len(examples) >= 4
    for words in examples:
        agent_config(evaluate.make_context("eval", words).params["preset"])


def test_a_verb_is_found_by_its_name_of_before():
    assert cli.main.get_command(None, "plan") is cli.main.get_command(None, "budget")
    assert "plan" not in cli.main.list_commands(None) and cli.main.get_command(None, "plans") is None


def test_help_fits_a_terminal_and_is_instant():
    """80 columns, and no import of what only the work needs."""
    code = (
        "import sys; from click.testing import CliRunner; from tmem.cli import main\n"
        "for words in ([], *([name] for name in main.list_commands(None))):\n"
        "    print(CliRunner().invoke(main, [*words, '--help'], env={'COLUMNS': '80'}).output)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    *shown, heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()
    assert heavy == "[]" and len(shown) > 100 and max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    "error, sentence",
    [
        (loading.ModelError("no model at x: expected a folder."), "no model at x: expected a folder."),
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "data.json"), "data.json: no such file or directory."),
        (FileExistsError("out exists; choose another path."), "out exists; choose another path."),
    ],
)
def test_an_expected_error_is_one_sentence(verb, error, sentence):
    result = verb(raises(error))
    assert (result.exit_code, result.output) == (2, f"Error: {sentence}\n")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--task", "locomo", "--split", "dev"], "--split has no meaning for --task locomo; leave it out."),
        (["--task", "stream", "--adversarial", "choice"], "--adversarial has no meaning for --task stream; leave it out."),
        (["--judge-model", "x"], "--judge-model has no meaning for answers that nobody grades (no --judge-url); leave it out."),
        (["--task", "search", "--probe"], "--probe has no meaning for --task search; leave it out."),
        (["--methods", ""], "got none."),
    ],
)
def test_flags_that_would_do_nothing_are_refused(words, sentence, tmp_path):
    result = CliRunner().invoke(cli.main, ["eval", *words, "--out", str(tmp_path / "out")], env={"COLUMNS": "160"})
    assert result.exit_code == 2 and sentence in result.output and not (tmp_path / "out").exists()


def test_an_unexpected_error_keeps_its_traceback(verb):
    assert isinstance(verb(raises(KeyError("bug"))).exception, KeyError)
    assert isinstance(verb(raises(ValueError("bad")), TMEM_DEBUG="1").exception, ValueError)


def test_interrupt_is_quiet_and_exits_130(verb):
    result = verb(raises(KeyboardInterrupt()))
    assert (result.exit_code, result.output) == (130, "")


def test_the_installed_command_answers():
    done = subprocess.run([sys.executable, "-m", "tmem", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("tmem 0.")


def listed(device="cpu"):
    from tmem import ops

    of_a_cpu = (*ops.CPU_PARTS, *ops.PASS_PARTS) if device == "cpu" else ()
    return (*ops.OPS, *ops.TOKEN_PARTS, *ops.SVD_PARTS, *of_a_cpu)


def test_info_tells_versions_devices_model_and_kernels():
    from tmem import ops

    facts = json.loads(CliRunner().invoke(cli.main, ["info", "--json"], catch_exceptions=False).output)
    assert {"tmem", "python", "torch", "transformers"} <= facts["versions"].keys()
    assert facts["machine"]["cores"] >= 1 and facts["machine"]["cpu"]
    assert facts["model"]["name"] == loading.DEFAULT
    assert facts["kernels"]["cpu"] == {op: ops.kernel_for(op, "cpu") for op in listed()}
    shown = CliRunner().invoke(cli.main, ["info"], catch_exceptions=False).output
    assert facts["versions"]["torch"] in shown
    assert all(op in shown for op in listed()) and "not taken" not in shown


def test_info_says_what_a_gpu_computes_as_plain_pytorch(monkeypatch):
    """With what to do about it; nothing without a GPU, or where every op has a kernel."""
    from tmem import ops

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for without, words in (
        (set(ops.SVD_PARTS), "install the CUDA toolkit, which has nvcc, and then tmem again with TMEM_CUDA=ON."),
        ({"lora_norm", *ops.SVD_PARTS}, "install Triton and the CUDA toolkit and then tmem again with TMEM_CUDA=ON."),
        (set(), None),
    ):

        def kernel(op, device, without=without):
            return "PyTorch reference" if op in without else "Triton"

        monkeypatch.setattr(ops, "kernel_for", kernel)
        shown = " ".join(CliRunner().invoke(cli.main, ["info"], catch_exceptions=False).output.split())
        assert ("Plain PyTorch serves" in shown) == (words is not None) and "not taken" in shown
        if words:
            named = ", ".join(op for op in listed("cuda") if op in without)
            assert f"Plain PyTorch serves {named} on the GPU" in shown and words in shown
    monkeypatch.undo()
    assert torch.cuda.is_available() or "Plain PyTorch" not in CliRunner().invoke(cli.main, ["info"]).output


def test_info_works_without_the_default_model(monkeypatch):
    monkeypatch.setattr(loading, "_PACKAGE", "no_such_package")
    result = CliRunner().invoke(cli.main, ["info"], catch_exceptions=False)
    assert result.exit_code == 0 and "not installed" in result.output


@pytest.mark.parametrize("name", ["llama31", "gemma"])
def test_info_says_what_was_understood_of_a_model(name, tmp_path):
    """Against the model as it is loaded; the text fits 80 columns."""
    template, bos, eos, end = TEMPLATES[name]
    words = tokenizer(template=template, bos=bos, eos=eos)
    rope = {"rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    network = model(name.rstrip("31"), vocab_size=400, rope_parameters=rope, tie_word_embeddings=name == "gemma")
    network.generation_config.eos_token_id = [4, 8]
    loading.save_model(network, words, tmp_path / "m")
    shown = CliRunner().invoke(cli.main, ["info", "--model", str(tmp_path / "m"), "--json"])
    facts, (loaded, _) = json.loads(shown.output), loading.load_model(tmp_path / "m", dtype=torch.float32)
    assert facts["family"] == name.rstrip("31") and facts["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert facts["rope"] == {"type": "llama3", "theta": 5e4, **{k: v for k, v in rope.items() if not k.startswith("rope")}}
    assert facts["tied"] == (loaded.lm_head.weight is loaded.model.embed_tokens.weight)
    assert facts["head_dim"] == loaded.model.layers[0].self_attn.head_dim
    assert (facts["vocabulary"], facts["embeddings"]) == (len(words), 400)
    assert facts["dtype_on_disk"] == {"F32": sum(1 for _ in network.parameters())} and facts["window"] is None
    chat = Chat(words, loaded)
    assert set(map(int, facts["ends"])) == chat.ends >= {4, 8} and facts["end_of_answer"] == end
    assert facts["template"]["system"] == {"llama31": "left out", "gemma": "refused"}[name]
    agent = Agent.build(loaded, words, agent_config("default"), slots=1)
    factors = sum(site.module.out_features * agent.config.adapter.rank for site in agent.bank.sites)
    assert (facts["adapted"]["matrices"], facts["adapted"]["parameters_per_slot"]) == (len(agent.bank.sites), factors)
    text = CliRunner().invoke(cli.main, ["info", "--model", str(tmp_path / "m")], env={"COLUMNS": "80"}).output
    assert max(map(len, text.splitlines())) <= 80 and end in text and "theta 50000" in text


@pytest.mark.parametrize(
    "family, window, targets, says",
    [("gemma3_text", {"tokens": 24, "layers": 2}, ["gate_proj", "up_proj", "down_proj"], "2 layers see the last 24 tokens"),
     ("glm4", None, ["gate_up_proj", "down_proj"], "partial_rotary_factor 0.5"),
     ("granite", None, ["gate_proj", "up_proj", "down_proj"], "logits_scaling 4.0")],
)  # fmt: skip
def test_info_says_what_a_family_has_of_its_own(family, window, targets, says, tmp_path):
    network = model(family, vocab_size=400)
    loading.save_model(network, tokenizer(), tmp_path / "m")
    facts = json.loads(CliRunner().invoke(cli.main, ["info", "--model", str(tmp_path / "m"), "--json"]).output)
    assert (facts["window"], facts["adapted"]["targets"]) == (window, targets)
    assert facts["family_settings"].keys() <= {*network.config.to_dict(), *network.config.rope_parameters}
    agent = Agent.build(network, tokenizer(), agent_config("default"), slots=1)
    factors = sum(site.module.out_features * agent.config.adapter.rank for site in agent.bank.sites)
    assert (facts["adapted"]["matrices"], facts["adapted"]["parameters_per_slot"]) == (len(agent.bank.sites), factors)
    text = CliRunner().invoke(cli.main, ["info", "--model", str(tmp_path / "m")], env={"COLUMNS": "80"}).output
    assert max(map(len, text.splitlines())) <= 80 and says in " ".join(text.split())


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_moe+dense"])
def test_info_counts_the_experts_that_a_preset_adapts(family, tmp_path):
    network = model(family, vocab_size=400)
    loading.save_model(network, tokenizer(), tmp_path / "m")
    facts = json.loads(CliRunner().invoke(cli.main, ["info", "--model", str(tmp_path / "m"), "--json"]).output)
    agent = Agent.build(network, tokenizer(), agent_config("default"), slots=1)
    rank, sites = agent.config.adapter.rank, agent.bank.sites
    assert facts["family_settings"]["num_experts"] == sites[0].experts
    adapted = facts["adapted"]
    assert set(adapted["targets"]) == {site.name.rpartition(".")[2] for site in sites}
    assert adapted["matrices"] == sum(site.experts for site in sites)
    assert adapted["parameters_per_slot"] == rank * sum(site.experts * site.outputs for site in sites)


def test_info_without_a_model_points_to_it():
    assert "tmem info --model" in CliRunner().invoke(cli.main, ["info"]).output


def test_info_names_the_file_that_a_model_was_converted_from(tmp_path, monkeypatch):
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "m.gguf", model(vocab_size=300))
    facts = json.loads(CliRunner().invoke(cli.main, ["info", "--model", str(file), "--json"]).output)
    assert facts["converted_from"] == [str(file)] and facts["template"] is None


def described(*words):
    """What `tmem info` says: as JSON, and as text of 80 columns."""
    found = CliRunner().invoke(cli.main, ["info", *words, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    text = CliRunner().invoke(cli.main, ["info", *words], env={"COLUMNS": "80"}).output
    assert max(map(len, text.splitlines())) <= 80
    return json.loads(found.output), " ".join(text.split())


def adapter_in(folder, card=None, base=None):
    """An adapter of rank 3 over a tiny model."""
    network = model(vocab_size=300)
    pairs = {"model.layers.0.mlp.up_proj": (torch.ones(3, 64), torch.ones(128, 3))}
    save_lora(folder, Lora(pairs, 3, 2.0, fingerprint(network)), base)
    if card is not None:
        (folder / "README.md").write_text(card)


CARDS = [
    (None, None), ("", None), ("---\nlicense: mit\n---\n\n# A writer of pairs\n\nMore.", "A writer of pairs"),
    ("\n\nTaught [bold]from\x1b[31m text[/bold]\n", "Taught [bold]from\x1b[31m text[/bold]"), ("---\nnever closed", None),
]  # fmt: skip


@pytest.mark.parametrize("card, line", CARDS)
def test_info_names_the_adapter_that_lies_over_the_default_model(tmp_path, monkeypatch, card, line):
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "default_file", lambda: write(tmp_path / "m.gguf", model(vocab_size=300)))
    monkeypatch.setattr(loading, "WRITER", tmp_path / "writer")
    for words in ((), ("--model", loading.DEFAULT)):
        facts, text = described(*words)
        assert (facts if words else facts["model"])["adapter"] is None and "adapter none" in text
    adapter_in(tmp_path / "writer", card)
    size = (tmp_path / "writer/adapter_model.safetensors").stat().st_size
    for words in ((), ("--model", loading.DEFAULT)):
        facts, text = described(*words)
        found = (facts if words else facts["model"])["adapter"]
        assert found == {"name": "default", "folder": str(tmp_path / "writer"), "rank": 3, "bytes": size, "card": line}
        assert "adapter default, which comes with tmem: rank 3, 0.0 MB" in text and "\x1b" not in text
        assert line is None or line.replace("\x1b", "\\x1b") in text


def test_info_names_the_adapter_that_is_given_as_a_model(tmp_path):
    loading.save_model(model(vocab_size=400), tokenizer(), tmp_path / "base")
    adapter_in(tmp_path / "mine", "# Mine\n", str(tmp_path / "base"))
    facts, text = described("--model", str(tmp_path / "mine"))
    assert (facts["adapter"]["name"], facts["adapter"]["rank"], facts["adapter"]["card"]) == (str(tmp_path / "mine"), 3, "Mine")
    assert facts["folder"] == str(tmp_path / "base") and "rank 3, 0.0 MB" in text and "comes with tmem" not in text
    assert described("--model", str(tmp_path / "base"))[0]["adapter"] is None
    (tmp_path / "mine/adapter_model.safetensors").unlink()
    found = CliRunner().invoke(cli.main, ["info", "--model", str(tmp_path / "mine")])
    assert found.exit_code == 2 and "adapter_model.safetensors is missing" in found.output


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is torch's on Linux")
@pytest.mark.parametrize("chosen, spins", [({}, "4000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")])
def test_waiting_threads_sleep_soon_unless_somebody_chose_otherwise(chosen, spins):
    """libgomp itself tells what it was asked for when torch loaded it."""
    given = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    script = "from tmem.cli import main; main.callback(); import torch"
    environment = {**given, "OMP_DISPLAY_ENV": "verbose", **chosen}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in told
