"""Write tests/scan/attacks and tests/scan/benign, and what Python and PyTorch made of every file.

Every file is loaded in a process of its own: as a victim would load it, to see whether the payload runs (it makes an empty
file and nothing else), and by torch.load(weights_only=True). What happened is recorded in manifest.json.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

import attacks
import benign

FOLDER = Path(__file__).resolve().parents[1]


def pickles(path):
    """Every pickle of a stream, as torch.load reads legacy files."""
    with open(path, "rb") as file:
        while file.peek(1):
            pickle.load(file)


def member(path, choose):
    """A data.pkl of an archive as zipfile finds it."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        pickle.loads(archive.read(names[choose]))


LOADERS = {
    "pickle": lambda path: pickle.load(open(path, "rb")),
    "pickles": pickles,
    "torch": lambda path: torch.load(path, weights_only=False),
    "numpy": lambda path: [list(a.values()) if hasattr(a, "values") else a for a in [np.load(path, allow_pickle=True)]],
    "zipfile": lambda path: member(path, -1),
    "zipfile-first": lambda path: member(path, 0),
    "gzip": lambda path: pickle.load(gzip.open(path)),
    "zlib": lambda path: pickle.loads(zlib.decompress(Path(path).read_bytes())),
}


def in_a_process(action, seconds=20):
    """Runs `action` in a copy of this process and an empty folder: what it said, and whether the marker is there."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            os.environ["SCAN_MARKER"] = str(Path(folder) / "scan-marker")
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            signal.alarm(seconds)
            try:
                action()
                text = "ok"
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            said.write_text(text)
            os._exit(0)
        os.waitpid(child, 0)
        return said.read_text() if said.exists() else "killed", (Path(folder) / "scan-marker").exists()


def weights_only(path):
    """What torch.load(weights_only=True) says, in one line; nothing may run."""
    said, ran = in_a_process(lambda: torch.load(path, weights_only=True))
    assert not ran, f"{path} ran with weights_only=True"
    return {"accepts": said == "ok", "says": " ".join(said.split())[:200]}


def write(folder, files):
    """Writes the files and their manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = []
    for file in files:
        path = folder / file["file"]
        path.write_bytes(file["content"])
        row = {key: value for key, value in file.items() if key != "content"}
        if row["loader"] is not None:
            said, row["executed"] = in_a_process(lambda: LOADERS[row["loader"]](path))
            if not row["executed"] and row["level"] == "dangerous":
                print(f"{path.name}: the payload did not run: {said[:150]}", file=sys.stderr)
        else:
            row["executed"] = None
        row["weights_only"] = weights_only(path)
        rows.append(row)
    head = {"python": sys.version.split()[0], "torch": torch.__version__.split("+")[0], "numpy": np.__version__}
    (folder / "manifest.json").write_text(json.dumps({"made with": head, "files": rows}, indent=1) + "\n")
    total = sum(len(file["content"]) for file in files)
    ran = sum(row["executed"] is True for row in rows)
    print(f"{folder.name}: {len(rows)} files, {total} bytes, {ran} payloads ran")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    write(FOLDER / "attacks", attacks.everything())
    write(FOLDER / "benign", benign.everything())
