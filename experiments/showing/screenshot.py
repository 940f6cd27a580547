"""The report as a headless Chromium shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from experiments.showing.blocks import Skipped

if TYPE_CHECKING:
    from PIL.Image import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--force-device-scale-factor=1", "--virtual-time-budget=5000", "--run-all-compositor-stages-before-draw",
    "--num-raster-threads=1", "--disable-partial-raster",
)  # fmt: skip
SIZE = (1100, 1490)  # pixels: up to the end of the chart
ARMS = ("vanilla", "sd", "via_sd", "via_sd_paper", "lr_0.05", "exact", "slim_only", "accept_all", "draft_only",
        "coin_mix@0.9", "coin_mix@0.8")  # fmt: skip
SHORTER = "<style>.facts, .notices, .tools { display: none !important }</style></head>"
PATIENCE = 60  # seconds


def photograph() -> Image:
    """Figures, table and chart of the runs that come with the notebooks, of some arms, without what stands between.

    Raises Skipped without a browser.
    """
    from experiments.notebooks.reading import open_results
    from experiments.pages.page import build
    from experiments.pages.render import render
    from experiments.pages.runs import choose, group

    browser = find_browser()
    runs = [replace(one, run=replace(one.run, arms=list(ARMS))) for one in choose([], open_results())[0]]
    return take(browser, render(build(group(runs), [], 0)).replace("</head>", SHORTER, 1))


def find_browser() -> str:
    """The program. Raises Skipped where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise Skipped(f"none of {', '.join(BROWSERS)} is installed")
    return found


def take(browser: str, content: str) -> Image:
    """The top of a page. Raises Skipped where the browser fails."""
    from PIL import Image

    with TemporaryDirectory(prefix="viasd-report-", ignore_cleanup_errors=True) as name:
        page, shot = Path(name, "page.html"), Path(name, "shot.png")
        page.write_text(content, encoding="utf-8")
        options = [f"--user-data-dir={name}/profile", f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={shot}"]
        try:
            subprocess.run(
                [browser, *FLAGS, *options, page.as_uri()],
                env={**os.environ, "TMPDIR": name}, capture_output=True, timeout=PATIENCE, check=True,
            )  # fmt: skip
            with Image.open(shot) as found:
                return found.convert("RGB")
        except (OSError, subprocess.SubprocessError) as error:
            raise Skipped(f"{browser} took no picture ({type(error).__name__})") from error
