"""Opening costs what it must: of a checkpoint of 10 GB the directory and the pickle are read, and no tensor data."""

import io
import json
import mmap
import os
import subprocess
import time
import zipfile

import torch

from report import equal, expect
from tensors import describe
from tool import ROOT

SIZE = 10 * 10**9
TENSORS = 40
MIB = 1 << 20
# Pages are read ahead of what is asked for, by 128 KiB as a rule, at each place that is looked at.
READ_AHEAD = 4 * MIB
SECONDS = 2.0


def main(report, tool):
    """Each container: what of the file comes into memory, and how long it takes."""
    for what, make in (("safetensors", safetensors), ("zip", archive), ("legacy stream", stream)):
        path = tool.work / f"ten_gigabytes_{what.replace(' ', '_')}"
        small = torch.arange(7.0)
        try:
            with report.check(f"opening 10 GB of {what} reads pickles and directories only"):
                needed = make(path, small)
                seconds, read, peak = measured(tool, path)
                size = path.stat().st_size
                facts = f"{size / 1e9:.1f} GB, {read / MIB:.2f} MiB of it in memory afterwards ({needed} bytes needed)"
                report.note(f"{what}: {facts}, peak resident {peak / MIB:.0f} MiB, wall {seconds:.3f} s")
                expect(read < needed + READ_AHEAD, facts)
                expect(seconds < SECONDS, f"{seconds:.2f} s")
            with report.check(f"10 GB of {what}: one tensor at the end is read, and nothing else"):
                drop(path)
                tensors = tool.inspect(path, "--root", "end", "--hash")["tensors"]
                equal([t["sha256"] for t in tensors], [describe(small)["sha256"]], "the hash of the last tensor")
                read = cached(path)
                report.note(f"{what}: {read / MIB:.2f} MiB in memory after one small tensor was read")
                expect(read < needed + READ_AHEAD, f"{read} bytes are in memory")
        finally:
            path.unlink(missing_ok=True)


def measured(tool, path):
    """(seconds, bytes of the file that are in memory afterwards, most resident memory) of `inspect`."""
    drop(path)
    expect(cached(path) == 0, "the file could not be put out of memory")
    start = time.monotonic()
    with subprocess.Popen(tool.command("inspect", path, "--json", "--root", ""), cwd=ROOT, stdout=subprocess.PIPE) as run:
        listing = json.loads(run.stdout.read())
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    equal(run.returncode, 0, "the exit code")
    equal(len(listing["tensors"]), TENSORS + 1, "the number of tensors")
    return seconds, cached(path), usage.ru_maxrss * 1024


def drop(path):
    """Put a file out of memory; what was written lately must be on disk for that."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(path):
    """Bytes of a file that are in memory, as mincore tells."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        resident = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapped)
        done = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), resident)
        del anchor
        expect(done == 0, f"mincore: {os.strerror(ctypes.get_errno())}")
        return sum(page & 1 for page in bytes(resident)) * mmap.PAGESIZE


def names():
    """The big tensors."""
    return [f"blocks.{i}.weight" for i in range(TENSORS)]


def safetensors(path, small):
    """A sparse file with the small tensor at its end; returns the bytes that a reader needs."""
    each = SIZE // TENSORS // 8 * 8
    entries = {
        name: {"dtype": "F32", "shape": [each // 4], "data_offsets": [i * each, (i + 1) * each]}
        for i, name in enumerate(names())
    }
    entries["end.small"] = {"dtype": "F32", "shape": [7], "data_offsets": [TENSORS * each, TENSORS * each + 28]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(TENSORS * each, os.SEEK_CUR)
        file.write(small.numpy().tobytes())
    return 8 + len(text)


def pickled(small, new):
    """What torch.save writes for the same tensors on the meta device's terms: no data behind the storages."""
    each = SIZE // TENSORS // 4
    storages = {name: torch.UntypedStorage(each * 4, device="meta") for name in names()}
    return each, storages, small, new
