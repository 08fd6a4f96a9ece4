"""A memory's adapter over HTTP says in PEFT what the memory says here."""

import io
import json
import random
import zipfile
from collections import Counter

import pytest
import torch
from tiny import model, pairs

pytest.importorskip("starlette", reason="needs tmem[serve]")
pytest.importorskip("uvicorn", reason="needs tmem[serve]")
peft = pytest.importorskip("peft", reason="needs the package peft")

from tiny_server import MODEL, serving  # noqa: E402

from tmem.adapters.peft import load_adapter  # noqa: E402
from tmem.serve.tenants import Tenants  # noqa: E402


def fetched(client, name, folder):
    """The adapter's folder, as a client keeps it."""
    folder.mkdir()
    for path, file in (("adapter", "adapter_model.safetensors"), ("adapter/config", "adapter_config.json")):
        found = client.get(f"/v1/memories/{name}/{path}")
        assert found.status_code == 200, found.text
        (folder / file).write_bytes(found.content)
    return folder


def test_peft_goes_on_with_a_text_as_the_server_does(tmp_path):
    with serving(tmp_path / "s") as (client, store):
        client.post("/v1/memories", json={"name": "ada"})
        told = [[p.question, p.answer] for p in pairs(4, "m")]
        assert client.post("/v1/memories/ada/learn", json={"pairs": told}).is_success
        folder = fetched(client, "ada", tmp_path / "ada")
        said = client.post("/v1/completions", json={"prompt": "what is m?", "user": "ada", "max_tokens": 10}).json()
        alone = client.post("/v1/completions", json={"prompt": "what is m?", "max_tokens": 10}).json()
        assert client.get("/v1/memories/nobody/adapter").status_code == 404
        with store.using(["ada"]) as (memory,):
            bank = store.agent.bank
            slot = load_adapter(bank, folder)
            assert all(torch.equal(s.bt[slot], s.bt[memory.row]) for s in bank.sites)
            bank.free(slot)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == MODEL
    network = peft.PeftModel.from_pretrained(model(), str(folder))
    ids, text = [ord(c) for c in "what is m?"], ""
    while len(text) < len(said["choices"][0]["text"]):
        ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        text += chr(ids[-1])
    assert text == said["choices"][0]["text"] != alone["choices"][0]["text"]


def test_an_adapter_is_its_tenants_alone(tmp_path):
    keys = {"acme": "acme-key-0123456789", "beta": "beta-key-0123456789"}
    with serving(tmp_path / "s", tenants=Tenants(list(keys.items()))) as (client, store):
        store.make("acme/ada")
        for path in ("adapter", "adapter/config"):
            found = [
                client.get(f"/v1/memories/ada/{path}", headers={"Authorization": f"Bearer {key}"}) for key in keys.values()
            ]
            assert [f.status_code for f in found] == [200, 404]
            assert client.get(f"/v1/memories/ada/{path}").status_code == 401
            assert b"acme" not in found[0].content


def test_a_memory_moves_to_another_server(tmp_path):
    with serving(tmp_path / "a") as (client, store):
        client.post("/v1/memories", json={"name": "ada"})
        told = [[p.question, p.answer] for p in pairs(4, "m")]
        client.post("/v1/memories/ada/learn", json={"pairs": told})
        client.post("/v1/memories/ada/observe", json={"text": "it waits"})
        found = client.get("/v1/memories/ada/archive")
        store_model = client.get("/v1/models").json()["data"][0]["id"]
        said = client.post("/v1/completions", json={"prompt": "what is m?", "user": "ada", "max_tokens": 10}).json()
        assert client.get("/v1/memories/nobody/archive").status_code == 404
    assert found.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(found.content)) as packed:  # a client learns no path of the server
        assert json.loads(packed.read("adapter_config.json"))["base_model_name_or_path"] == store_model
    with serving(tmp_path / "b") as (client, store):
        made = put(client, "eva", found.content)
        assert made.status_code == 201 and made.json() == {"name": "eva", "pairs": 4}
        assert put(client, "eva", found.content).status_code == 409
        again = client.post("/v1/completions", json={"prompt": "what is m?", "user": "eva", "max_tokens": 10}).json()
        assert again["choices"] == said["choices"]
        assert [p["question"] for p in client.get("/v1/memories/eva/pairs").json()["data"]] == [q for q, _ in told]
        with store.using(["eva"]) as (memory,):
            assert memory.waiting == ["it waits"]


def put(client, name, content, **headers):
    headers = {"Content-Type": "application/zip", **headers}
    return client.put(f"/v1/memories/{name}/archive", content=content, headers=headers)


KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def zipped(kind=zipfile.ZIP_DEFLATED, **files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as into:
        for name, text in files.items():
            into.writestr(name.replace("__", "/").replace("_json", ".json").replace("_safetensors", ".safetensors"), text)
    return content.getvalue()


def test_an_archive_that_is_none_leaves_nothing_behind(tmp_path):
    good = {"tmem_json": "{}", "adapter_config_json": "{}", "adapter_model_safetensors": b""}
    with serving(tmp_path / "s") as (client, store):
        client.post("/v1/memories", json={"name": "ada"})
        whole = client.get("/v1/memories/ada/archive").content
        for content, sentence in (
            (b"", "no zip archive"), (b"PK", "no zip archive"), (whole[:-40], "no zip archive"),
            (zipped(**{"..__..__tmem_json": "{}"}), "expected tmem.json, adapter_config.json"),
            (zipped(**good, other="x"), "the archive holds"), (zipped(**good), "is damaged"),
            (zipped(**{**good, "adapter_model_safetensors": b"\0" * (40 << 20)}), "bytes together, expected"),
            (whole.replace(b"adapter_model.safetensors", b"adapter_model.safetensorz"), "the archive"),
        ):  # fmt: skip
            found = put(client, "eva", content)
            assert 400 <= found.status_code < 500 and sentence in found.json()["error"]["message"], found.text
            assert str(tmp_path) not in found.text and "/tmp" not in found.text
            assert "eva" not in store
        assert put(client, "eva", whole, **{"Content-Type": "application/json"}).status_code == 415
        rng, seen = random.Random(0), Counter()
        packed = [zipped(kind, **{**good, "adapter_model_safetensors": rng.randbytes(500)}) for kind in KINDS]
        for _ in range(400):  # bytes that are damaged, in every kind of compression
            content = bytearray(rng.choice(packed))
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            found = put(client, "eva", bytes(content))
            seen[found.json()["error"]["message"][:20]] += 1
            assert 400 <= found.status_code < 500 and "eva" not in store, found.text
        assert len(seen) > 2
        assert put(client, "eva", b"x" * (64 << 20)).status_code == 413
    with serving(tmp_path / "other", hidden_size=32) as (client, _):
        found = put(client, "eva", whole)
        assert found.status_code == 400 and "open it with the same model" in found.json()["error"]["message"]
