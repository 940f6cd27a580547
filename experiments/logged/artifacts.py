"""Artifacts of a run as plain data: the masks and heads that its arms use, its rows and its summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from baselines.eagle.files import find_folder
from experiments.identity import digest
from experiments.store import RunFolder

Described = dict[str, Any]  # name, type, metadata, and what it holds: texts by file name, a file of rows, a folder


def artifacts(run: Mapping[str, Any], folder: RunFolder, texts: bool, upload_heads: bool) -> list[Described]:
    """All that is kept of a run. Equal content under one name is one version, whichever run logs it."""
    return [
        *masks(run["identity"]),
        *heads(run, upload_heads),
        {
            "name": f"rows-{folder.run_id}",
            "type": "rows",
            "metadata": {"texts": texts},
            "rows": str(folder.rows_path),
        },
        {
            "name": f"summary-{folder.run_id}",
            "type": "summary",
            "metadata": {},
            "texts": {"summary.json": folder.summary_path.read_text(encoding="utf-8")},
        },
    ]


def masks(identity: Mapping[str, Any]) -> list[Described]:
    """Each slim view's kept layers, by target and skip ratio; arms that share one are told together."""
    target, found = identity["pair"]["models"].get("target"), dict[str, Described]()
    for arm, described in identity["arms"].items():
        for view in _slim_views(described):
            content = {"target_hash": target, "skip_ratio": view["skip_ratio"], "kept": view["mask"]}
            key = digest(content)
            if key not in found:
                found[key] = {
                    "name": f"mask-{target}-{view['skip_ratio']:g}",
                    "type": "mask",
                    "metadata": {**content, "arms": []},
                    "texts": {"mask.json": json.dumps(content, indent=1) + "\n"},
                }
            found[key]["metadata"]["arms"].append(arm)
    return list(found.values())


def _slim_views(described: Any) -> Iterator[Mapping[str, Any]]:
    """The settled views in a described arm, wherever they are."""
    if isinstance(described, Mapping):
        if "skip_ratio" in described and not isinstance(described.get("mask", ""), str):
            yield described
        for inner in described.values():
            yield from _slim_views(inner)
    elif isinstance(described, list):
        for inner in described:
            yield from _slim_views(inner)


def heads(run: Mapping[str, Any], upload: bool) -> list[Described]:
    """The heads that arms use: by their hash, and beside it where they are; their files too if they are uploaded.

    Where a head lies is no content, so the same head is one version on every machine.
    """
    told = []
    for name, head_hash in run["identity"].get("heads", {}).items():
        source = run["config"]["pair"]["heads"][name]
        content = {"head": name, "hash": head_hash}
        told.append(
            {
                "name": f"head-{name}",
                "type": "head",
                "metadata": {**content, "source": source},
                "texts": {"head.json": json.dumps(content, indent=1) + "\n"},
                "folder": str(find_folder(source).resolve()) if upload else None,
            }
        )
    return told
