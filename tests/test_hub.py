"""Models of a hub: what is found in its cache, what is downloaded, and one line that says what to do where it fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hub_layout import REFERENCE, make_model, put_on_hub, save_model

from experiments import identity
from experiments.plan import pair_notices
from viasd.hub import HubError, fetch_model, fetch_texts, is_hub_id, missing_weights, resolved_commit
from viasd.models import Pair, PairError, common_vocabulary, load_model, make_view
from viasd.pretrained import loading_options

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is offline."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def test_hub_ids() -> None:
    assert all(map(is_hub_id, ("org/name", "meta-llama/Llama-3.1-8B-Instruct", "a_b/c.d-e")))
    assert not any(map(is_hub_id, ("name", "/org/name", "./org/name", "~/name", "a/b/c", "viasd://x/y", "a/..", "a/")))


def test_the_cache_of_the_hub(hub: Path) -> None:
    """The revision's snapshot, with weights; a folder of that name comes first."""
    main = put_on_hub(hub, "org/draft", REFERENCE / "draft")
    older = put_on_hub(hub, "org/draft", REFERENCE / "mid", revision="v1")
    pair = Pair(name="p", models={"target": "org/draft", "draft": "org/draft"}, revisions={"draft": "v1"})
    assert [pair.path(role).name for role in pair.models] == [main, older]
    assert identity.snapshots(pair) == {"target": f"org/draft@{main}", "draft": f"org/draft@{older}"}
    assert identity.model_hash(pair.path("draft")) == identity.model_hash(REFERENCE / "mid")
    pinned = Pair(name="p", models={"target": "org/draft"}, revisions={"target": older})
    assert pinned.path("target", weights=False).name == older
    assert common_vocabulary(pair) == 1280


def test_folders_are_no_snapshots(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE / "draft", tmp_path / "m")
    assert resolved_commit(tmp_path / "m") is None
    assert identity.snapshots(Pair(name="p", models={"target": str(tmp_path / "m")})) == {}


def refusal(pair: Pair, role: str = "target") -> str:
    """The one line that a model's loading ends in."""
    with pytest.raises(PairError) as caught:
        load_model(pair, role, torch.float32, torch.device("cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_offline_and_not_in_the_cache(hub: Path) -> None:
    line = refusal(Pair(name="p", models={"target": "org/none"}))
    assert "pair.models.target=org/none: " in line and "HF_HUB_OFFLINE=0" in line and "cache" in line
    put_on_hub(hub, "org/one", REFERENCE / "draft")
    line = refusal(Pair(name="p", models={"target": "org/one"}, revisions={"target": "v9"}))
    assert "revision v9" in line and "HF_HUB_OFFLINE" in line


def test_weights_that_were_never_downloaded(hub: Path, tmp_path: Path) -> None:
    """As after a check: configuration and tokenizer are there, weights are not."""
    texts = tmp_path / "texts"
    shutil.copytree(REFERENCE / "draft", texts, ignore=shutil.ignore_patterns("*.safetensors"))
    put_on_hub(hub, "org/texts", texts)
    assert fetch_texts("org/texts").is_dir()
    line = refusal(Pair(name="p", models={"target": "org/texts"}))
    assert "weights are not in the hub's cache" in line and "HF_HUB_OFFLINE" in line


def test_a_missing_shard(hub: Path, tmp_path: Path) -> None:
    model = make_model("llama", seed=0, layers=2)
    model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 1 and missing_weights(tmp_path / "m") == []
    shards[1].unlink()
    put_on_hub(hub, "org/shards", tmp_path / "m")
    with pytest.raises(HubError, match=rf"{shards[1].name} is not in the hub's cache"):
        fetch_model("org/shards")


def test_pickled_weights_only_where_allowed(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama", seed=0, layers=2)
    folder = save_model(tmp_path / "m", model)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    put_on_hub(hub, "org/pickled", folder)
    models = {"target": "org/pickled", "draft": str(folder)}
    assert "pair.allow_pickle=true" in refusal(Pair(name="p", models=models), "draft")
    assert "pytorch_model.bin" in refusal(Pair(name="p", models=models), "draft")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("viasd.hub._snapshot", lambda *_: hub_snapshot(hub))
    assert "no safetensors" in refusal(Pair(name="p", models=models))
    allowed = Pair(name="p", models=models, allow_pickle=True)
    loaded = [load_model(allowed, role, torch.float64, torch.device("cpu")) for role in models]
    assert all(torch.equal(one.lm_head.weight, model.lm_head.weight) for one in loaded)
    before = identity.model_hash(folder)
    (folder / "pytorch_model.bin").write_bytes(b"other")
    identity.file_hash.cache_clear()
    assert identity.model_hash(folder) != before


def hub_snapshot(hub: Path) -> Path:
    (found,) = hub.glob("models--*/snapshots/*")
    return found


def test_a_full_disk(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any, **__: Any) -> str:
        raise RuntimeError("download failed") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", write)
    line = refusal(Pair(name="p", models={"target": "org/large"}))
    assert f"disk of the hub's cache {hub} is full" in line and "HF_HUB_CACHE=" in line and "GB free" in line


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does: org/good in one revision, org/gated without a token, nothing else."""

    files: ClassVar[dict[str, bytes]] = {}
    commit = "c" * 40

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[4:])
        else:
            self.resolve("/".join(parts[:2]), parts[-1])

    do_HEAD = do_GET

    def describe(self, name: str, more: list[str]) -> None:
        if name not in ("org/good", "org/gated"):
            return self.refuse(404, "RepoNotFound")
        if more[-1] not in ("main", self.commit):
            return self.refuse(404, "RevisionNotFound")
        if more[0] == "tree":
            tree = [{"type": "file", "path": path, "size": len(content), "oid": "0" * 40} for path, content in
                    self.files.items()]  # fmt: skip
            return self.send(json.dumps(tree).encode())
        siblings = [{"rfilename": path} for path in self.files]
        self.send(json.dumps({"id": name, "sha": self.commit, "siblings": siblings}).encode())

    def resolve(self, name: str, path: str) -> None:
        if name == "org/gated":
            return self.refuse(403, "GatedRepo")
        self.send(self.files[path], {"X-Repo-Commit": self.commit, "ETag": f'"{path}-etag"'})

    def refuse(self, status: int, code: str) -> None:
        self.send(b"", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a hub with the reference draft model and files that nobody asked for."""
    FakeHub.files = {path.name: path.read_bytes() for path in (REFERENCE / "draft").iterdir()}
    FakeHub.files |= {"pytorch_model.bin": b"pickled", "modeling.py": b"raise SystemExit", "onnx/config.json": b"{}"}
    own = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=own.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{own.server_port}"
    own.shutdown()
    own.server_close()


SCRIPT = """
import sys
from viasd.models import Pair, PairError
for name, revision in (part.split("@") for part in sys.argv[1:]):
    pair = Pair(name="p", models={"target": name}, revisions={"target": revision})
    try:
        print(sorted(path.name for path in pair.path("target").iterdir()))
    except PairError as error:
        print(error)
"""


def resolve(cache: Path, endpoint: str, *names: str) -> list[str]:
    """What another process says of these models, with that hub: file names, or the line of an error."""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", SCRIPT, *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_hub_that_answers(server: str, tmp_path: Path) -> None:
    """Only what is needed is downloaded: no pickles, no code, no subfolders. Each refusal says what to do."""
    good, gated, nowhere, wrong = resolve(
        tmp_path, server, "org/good@main", "org/gated@main", "org/none@main", "org/good@v7"
    )
    assert good == str(sorted(path.name for path in (REFERENCE / "draft").iterdir()))
    assert "pair.models.target=org/gated: gated" in gated and "licence" in gated and "HF_TOKEN" in gated
    assert "org/none: no such folder, and no such model on the hub" in nowhere
    assert "no revision 'v7'" in wrong and "commit hash" in wrong
    (again,) = resolve(tmp_path, "http://127.0.0.1:9", "org/good@main")
    assert again == good  # from the cache, while the hub is away


def test_a_copied_cache_while_the_hub_is_away(tmp_path: Path) -> None:
    """Snapshots that the client has no listing of: by branch and by commit."""
    commit = put_on_hub(tmp_path, "org/draft", REFERENCE / "draft")
    told = resolve(tmp_path, "http://127.0.0.1:9", "org/draft@main", f"org/draft@{commit}")
    assert told == [str(sorted(path.name for path in (REFERENCE / "draft").iterdir()))] * 2


def test_a_hub_that_is_away(tmp_path: Path) -> None:
    (line,) = resolve(tmp_path, "http://127.0.0.1:9", "org/good@main")
    assert "the hub cannot be reached" in line and "HF_ENDPOINT" in line


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viasd.pretrained.find_spec", lambda name: None)
    shared = {"target": "viasd://reference/target"}
    line = refusal(Pair(name="p", models=shared, quantization={"target": "int4"}))
    assert "int4: needs accelerate and bitsandbytes" in line and "pip install" in line
    assert "pair.device_map=auto: needs accelerate" in refusal(Pair(name="p", models=shared, device_map="auto"))


def test_quantized_loading_asks_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viasd.pretrained.find_spec", lambda name: name)
    made: dict[str, Any] = {}
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **asked: made.update(asked) or "config")
    cpu = torch.device("cpu")
    options = loading_options(REFERENCE / "target", torch.bfloat16, cpu, False, "int4", False)
    assert options["quantization_config"] == "config" and options["device_map"] == {"": cpu}
    assert made == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    spread = loading_options(REFERENCE / "target", torch.bfloat16, cpu, True, None, False)
    assert spread["device_map"] == "auto" and spread["use_safetensors"]


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(MARK).write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "own_family"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_repository_runs_only_where_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mark = make_model("llama", seed=0, layers=2), tmp_path / "mark"
    folder = save_model(tmp_path / "own", model)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    config |= {"model_type": "own_family", "architectures": ["OwnModel"], "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(OWN_CODE.replace("MARK", repr(str(mark))))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    models = {"target": str(folder)}
    assert "pair.trust_remote_code=true" in refusal(Pair(name="p", models=models)) and not mark.exists()
    trusting = Pair(name="p", models=models, trust_remote_code=True)
    loaded = load_model(trusting, "target", torch.float64, torch.device("cpu"))
    assert type(loaded).__name__ == "OwnModel" and mark.exists()
    assert any("trust_remote_code=true" in notice for notice in pair_notices(trusting))
    before = identity.model_hash(folder)
    (folder / "code.py").write_text("other")
    identity.file_hash.cache_clear()
    assert identity.model_hash(folder) != before


def test_how_a_pair_is_loaded_is_part_of_a_run() -> None:
    models = {"target": "t", "draft": "d"}
    assert identity.loading_identity(Pair(name="p", models=models, quantization={"target": None})) == {}
    own = Pair(name="p", models=models, quantization={"target": "int8"}, device_map="auto", chat="plain")
    assert identity.loading_identity(own) == {"quantization": {"target": "int8"}, "device_map": "auto", "chat": "plain"}


def test_a_view_of_a_model_that_moves_between_devices_is_a_view() -> None:
    """Forwards as accelerate binds them to an instance: a view has to run its own layers, not those of the target."""
    from functools import partial

    model = make_model("llama", seed=0, layers=4)
    ids = torch.tensor([[5, 6, 7]])
    expected = make_view(model, [0, 3])(input_ids=ids, use_cache=False).logits
    for module in model.modules():
        module._old_forward = module.forward
        module.forward = partial(lambda own, *args, **named: own._old_forward(*args, **named), module)
    found = make_view(model, [0, 3])(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, model(input_ids=ids, use_cache=False).logits)


def test_the_hash_of_a_large_file_is_kept_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "LARGE", 4)
    read: list[Path] = []
    monkeypatch.setattr(identity, "_read_hash", lambda path: read.append(path) or path.read_text())
    weights = tmp_path / "weights"

    def known() -> str:
        identity.file_hash.cache_clear()
        return identity.file_hash(weights)

    weights.write_text("first")
    assert [known(), known()] == ["first", "first"] and len(read) == 1
    weights.write_text("second")
    assert known() == "second" and len(read) == 2
    weights.write_text("odd")  # too small to be worth it
    assert [known(), known()] == ["odd", "odd"] and len(read) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    weights.write_text("third")
    assert [known(), known()] == ["third", "third"] and len(read) == 6
    identity.file_hash.cache_clear()
