"""docs/walkthrough.md, run: every command succeeds (or fails as shown), and prints what the page says, but for times.

`python check_walkthrough.py --update BINARY WORK` writes what is printed into the page.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import timm
import torch

import check_graft
from report import expect
from tool import ROOT, Tool

PAGE = ROOT / "docs" / "walkthrough.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.S)
PYTHON = re.compile(r"```python\n(.*?)```", re.S)
NAMES = {"image": "image.pth", "audio": "audio.pth", "video": "video.pth", "points": "points.pth", "donor": "vit_b16.pth"}


def files(tool, folder):
    """The raw files, under the names that the page has for them."""
    for _ in check_graft.four(tool):
        pass
    for old, new in NAMES.items():
        (tool.work / f"full_{old}.pth").rename(folder / new)


def run(tool, folder, line):
    """One command: what it prints on both streams."""
    program, *args = shlex.split(line)
    expect(program == "m2pt-surgery", f"{line} is no command of ours")
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(
        tool.command(*args), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment
    )
    return done.stdout


def played(tool, folder, block):
    """The block with what its commands print now."""
    lines = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{line}\n{run(tool, folder, line[2:])}" for line in lines)


def without_times(text):
    """Times and rates differ from run to run."""
    return re.sub(r"in [0-9.]+ s \([0-9.]+ .?B/s\)", "in T", text)


def main(report, tool):
    """Play the page."""
    folder = tool.work / "walkthrough"
    folder.mkdir()
    files(tool, folder)
    page = PAGE.read_text(encoding="utf-8")
    for block in BLOCK.findall(page):
        with report.check(f"walkthrough: {block.splitlines()[0][2:70]}"):
            now = without_times(played(tool, folder, block))
            expect(now == without_times(block), f"the page says otherwise; it prints\n{now}")
    with report.check("walkthrough: timm opens the folder and runs it"):
        (code,) = PYTHON.findall(page)
        names, here = {}, Path.cwd()
        os.chdir(folder)
        try:
            exec(code, names)  # the page's own three lines
        finally:
            os.chdir(here)
        model = names["model"].eval()
        expect(isinstance(model, timm.models.VisionTransformer), "it is another model")
        with torch.inference_mode():
            expect(model(torch.zeros(1, 3, 224, 224)).isfinite().all(), "the logits are not finite")


def update(binary, work):
    """Write what is printed into the page."""
    Path(work).mkdir(parents=True)
    tool = Tool(binary, work)
    files(tool, tool.work)
    page = PAGE.read_text(encoding="utf-8")
    page = BLOCK.sub(lambda found: f"```console\n{played(tool, tool.work, found[1])}```", page)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    expect(sys.argv[1] == "--update" and len(sys.argv) == 4, __doc__)
    update(*sys.argv[2:])
