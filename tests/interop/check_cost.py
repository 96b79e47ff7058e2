"""Opening costs what it must: of a checkpoint of 10 GB, pickles and directories are read, and no tensor data.

The files are sparse. Two measures: what the program touched is what of its maps was resident, at the most; what the
system read is what of the file is in memory afterwards, as mincore tells (before, the file was put out of memory).
The second depends on the disk: at every place that is touched the system reads ahead, 128 KiB as a rule, at times
megabytes.
"""

import ctypes
import json
import mmap
import os
import pickle
import subprocess
import time
from pathlib import Path

import numpy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diff_streams import Storage, Stored, stream_parts
from report import equal, expect
from tensors import describe
from tool import ROOT

SIZE = 10 * 10**9
COUNT = 40
EACH = SIZE // COUNT // 4
NAMES = [f"blocks.{i}.weight" for i in range(COUNT)]
SMALL = torch.arange(1.0, 8.0)
MIB = 1 << 20
# The program itself and its libraries are maps, too; around a touched page the system maps up to 64 KiB.
TOUCHED = 16 * MIB
# Places: each storage, and the two ends of the file.
PLACES = COUNT + 8
SECONDS = 2.0


def main(report, tool):
    """Each container: what of the file comes into memory, and how long it takes."""
    for what, make in (("safetensors", safetensors), ("a zip archive", archive), ("a legacy stream", stream)):
        path = tool.work / "ten_gigabytes"
        try:
            with report.check(f"10 GB of {what}: opening reads the directory and the pickle, no tensor data"):
                make(path)
                cost(report, tool, path, what)
            with report.check(f"10 GB of {what}: hashing a small tensor reads that one"):
                drop(path)
                listing = tool.inspect(path, "--root", "", "--match", "small", "--hash")["tensors"]
                equal([t["sha256"] for t in listing], [describe(SMALL)["sha256"]], "the hash of the small tensor")
                read = cached(path)
                expect(read < most(path), f"{read / MIB:.1f} MiB are in memory")
        finally:
            path.unlink(missing_ok=True)


def cost(report, tool, path, what):
    """One run of inspect."""
    drop(path)
    before, listing, peak = cached(path), tool.work / "listing.json", {}
    command = tool.command("inspect", path, "--json", "--root", "")
    with open(listing, "wb") as out:
        start = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True) as run:
            while run.poll() is None:
                for name, size in resident(run.pid).items():
                    peak[name] = max(size, peak.get(name, 0))
            errors = run.stderr.read()
    seconds, read = time.monotonic() - start, cached(path) - before
    equal(run.returncode, 0, f"({errors[-300:].strip()}) the exit code")
    tensors = json.loads(listing.read_text(encoding="utf-8"))["tensors"]
    equal([tensor["name"] for tensor in tensors], [*NAMES, "small"], "the list of names")
    memory = " + ".join(f"{peak[name] / MIB:.1f} MiB {name}" for name in ("RssAnon", "RssFile"))
    disk = f"{path.stat().st_size / 1e9:.2f} GB"
    ahead = f"the disk reads {read_ahead(path) // 1024} KiB ahead"
    report.note(
        f"{what} of {disk}: resident at most {memory}; {read / MIB:.2f} MiB read, {ahead}; wall {seconds:.3f} s"
    )
    expect(peak["RssFile"] < TOUCHED, f"{peak['RssFile'] / MIB:.1f} MiB were touched")
    expect(read < most(path), f"{read / MIB:.1f} MiB were read")
    expect(seconds < SECONDS, f"it took {seconds:.2f} s")


def resident(pid):
    """Resident memory of a process in bytes, by what kind it is; nothing if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.startswith(("RssAnon:", "RssFile:")))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in pairs}


def most(path):
    """The most that may be read: what the disk reads ahead at each place, and as much behind it."""
    return 2 * PLACES * read_ahead(path)


def read_ahead(path):
    """Bytes that are read ahead on the disk where a file is."""
    disk = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(disk)}:{os.minor(disk)}/read_ahead_kb")
    return 1024 * (int(setting.read_text(encoding="ascii")) if setting.exists() else 128)


def drop(path):
    """Put a file out of memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    expect(cached(path) < MIB, "the file stays in memory")


def cached(path):
    """Bytes of a file that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = numpy.frombuffer(mapped, dtype=numpy.uint8)
        pages = numpy.zeros(-(-len(view) // mmap.PAGESIZE), dtype=numpy.uint8)
        sizes = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view)), ctypes.c_void_p(pages.ctypes.data)
        failed = libc.mincore(*sizes)
        del view
    expect(not failed, f"mincore: {os.strerror(ctypes.get_errno())}")
    return int((pages & 1).sum()) * mmap.PAGESIZE


def safetensors(path):
    """A header, a hole, the small tensor."""
    entries = {
        name: {"dtype": "F32", "shape": [EACH], "data_offsets": [i * EACH * 4, (i + 1) * EACH * 4]}
        for i, name in enumerate(NAMES)
    }
    end = COUNT * EACH * 4
    entries["small"] = {"dtype": "F32", "shape": [7], "data_offsets": [end, end + 28]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(end, os.SEEK_CUR)
        file.write(SMALL.numpy().tobytes())


def archive(path):
    """torch.save that leaves the data out, and the small tensor where PyTorch says that it is."""
    with FakeTensorMode():
        state = {name: torch.empty(EACH) for name in NAMES}
        state["small"] = torch.empty(7)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(state, path)
    at = torch._C.PyTorchFileReader(str(path)).get_record_offset(f"data/{COUNT}")
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(SMALL.numpy().tobytes())
    equal(torch.load(path, mmap=True)["small"].tolist(), SMALL.tolist(), "the small tensor as PyTorch reads it")


def stream(path):
    """The pickles, and the storages one after the other, each behind its length."""
    state = {name: Stored(Storage(torch.empty(EACH, device="meta")), 0, (EACH,), (1,)) for name in NAMES}
    state["small"] = Stored(Storage(SMALL), 0, (7,), (1,))
    head, rows = stream_parts(state, pickle._Pickler)
    with open(path, "wb") as file:
        file.write(head)
        for row in rows:
            file.write(len(row).to_bytes(8, "little"))
            if row.device.type == "meta":
                file.seek(4 * len(row), os.SEEK_CUR)
            else:
                file.write(row.numpy().tobytes())
