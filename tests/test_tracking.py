"""Tracking logs a finished run offline, says where, and never raises or prints."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from pydantic import ValidationError

from experiments.metrics import summarize
from experiments.records import Row
from experiments.tracking import NoTracking, Tracking, WandbTracking, columns, flatten, table

ROWS = [
    Row("a", "vanilla", 0, new_tokens=4, decode_seconds=[1.0, 3.0], token_loss=[0.0, 1.0], text="secret", rounds=4),
    Row("b", "vanilla", 1, error="RuntimeError: boom"),
]


@pytest.fixture(autouse=True)
def _private_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))


def log(tracking: Tracking, folder: Path) -> str | None:
    summary = summarize(ROWS, ["vanilla"], temperature=0.0)
    return tracking.log_run(run_id="run1", config={"method": {"name": "sd"}}, summary=summary, rows=ROWS, folder=folder)


def test_nothing(tmp_path: Path) -> None:
    assert log(NoTracking(), tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("texts", [False, True])
def test_offline(tmp_path: Path, capfd: pytest.CaptureFixture[str], texts: bool) -> None:
    pytest.importorskip("wandb")
    notice = log(WandbTracking(texts=texts), tmp_path / "run")
    assert capfd.readouterr() == ("", "")
    place = next((tmp_path / "run" / "wandb").glob("offline-run-*-run1"))
    assert notice == f"wandb: offline in {place}"
    content = (place / "run-run1.wandb").read_bytes()
    assert b"vanilla/tokens_per_second" in content and b"vanilla/fidelity" in content
    stored = json.loads(next((place / "files" / "media" / "table").glob("rows*.json")).read_text())
    assert stored["columns"] == columns(texts) and len(stored["data"]) == 2
    assert ("secret" in json.dumps(stored)) is texts
    assert (b"secret" in content) is False


def test_another_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    notice = log(WandbTracking(dir=str(tmp_path / "all")), tmp_path / "run")
    assert notice is not None and str(tmp_path / "all" / "wandb") in notice
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_is_a_notice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    notice = log(WandbTracking(), tmp_path / "file" / "run")
    assert notice is not None and notice.startswith("wandb: not logged (NotADirectoryError")
    assert "\n" not in notice and capfd.readouterr() == ("", "")


def test_a_missing_wandb_is_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    notice = log(WandbTracking(), tmp_path)
    assert notice is not None and notice.startswith("wandb: not logged (ModuleNotFoundError")


@pytest.mark.parametrize("step", ["init", "Table"])
def test_a_failing_wandb_is_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    wandb = pytest.importorskip("wandb")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(wandb, step, fail)
    assert log(WandbTracking(), tmp_path) == "wandb: not logged (RuntimeError: no luck)"


def test_table_holds_scalars() -> None:
    lines = [dict(zip(columns(True), line, strict=True)) for line in table(ROWS, texts=True)]
    assert lines[0] | {"decode_seconds": 2.0, "fidelity": 0.5, "text": "secret", "rounds": 4} == lines[0]
    assert lines[1]["error"] == "RuntimeError: boom" and lines[1]["fidelity"] is None
    assert all(value is None or isinstance(value, str | int | float) for line in lines for value in line.values())


def test_flat_names() -> None:
    summary = {"sd": {"speedup": {"value": 2.0, "low": 1.0, "high": 3.0}, "n_timed": 4}}
    assert flatten(summary) == {"sd/speedup": 2.0, "sd/speedup/low": 1.0, "sd/speedup/high": 3.0, "sd/n_timed": 4}


def test_specs_are_checked() -> None:
    made = instantiate({"_target_": "experiments.tracking.WandbTracking", "mode": "online", "project": "p"})
    assert made == WandbTracking(mode="online", project="p") and isinstance(made, Tracking)
    assert isinstance(instantiate({"_target_": "experiments.tracking.NoTracking"}), Tracking)
    with pytest.raises(ValidationError, match="'offline' or 'online'"):
        WandbTracking(mode="never")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="texs"):
        WandbTracking(texs=True)  # type: ignore[call-arg]
