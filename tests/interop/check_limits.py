"""Archives that a plain zip cannot describe: more than 65,535 entries, more than 4 GiB."""

import json
import shutil

import torch
from safetensors.torch import save_file

import models
import reference
from check_archive import archive, with_computed_offsets
from report import equal, expect
from tensors import header, load, raw, same_state, same_tensor

COUNT = 70_000
GIB = 1 << 30
MARKS = {0: 1, GIB: 2, 4 * GIB + 99: 3}
MEMORY = 64 << 20


def main(report, tool):
    """Many entries, then large ones."""
    aux = models.small(32, torch.float32)
    other = tool.work / "limits_aux.pth"
    torch.save(aux, other)
    pairs = [(aux, reference.constant(0.1))]
    with report.check(f"{COUNT} tensors: more entries than fit without zip64"):
        many(tool, other, pairs)
    with report.check("a tensor of more than 4 GiB, and folded ones behind it"):
        huge(report, tool, other, pairs)


def many(tool, other, pairs):
    """A ViT beside very many small tensors."""
    values = torch.arange(COUNT, dtype=torch.int32)
    state = {**models.small(31, torch.float32), **{f"extra.{i}": values[i : i + 1].clone() for i in range(COUNT)}}
    source = tool.work / "many.safetensors"
    save_file(state, source)
    path = tool.fold(source, "--aux", other, "--lambda", "0.1", out="many.pth")
    archive(path)
    folded = reference.fold(state, pairs)
    wanted = {name: folded[name] for name in header(source)}
    same_state(load(path), wanted)
    same_state(with_computed_offsets(path), wanted)


def huge(report, tool, other, pairs):
    """A ViT behind a tensor of 4 GiB and a bit."""
    free = shutil.disk_usage(tool.work).free
    expect(free > 6 * GIB, f"this needs 6 GiB of disk, there are {free / GIB:.1f}")
    state = models.small(33, torch.float32)
    source, path = tool.work / "huge.safetensors", tool.work / "huge.pth"
    sparse(source, max(MARKS) + 1, state)
    try:
        seconds, peak = tool.measured("fold", source, "--aux", other, "--lambda", "0.1", "-o", path)
        report.note(f"fold beside 4 GiB: peak anonymous memory {peak / 2**20:.1f} MiB, wall {seconds:.1f} s")
        expect(peak < MEMORY, f"peak anonymous memory is {peak / 2**20:.1f} MiB")
        archive(path)
        wanted = reference.fold(state, pairs)
        for load_it in (lambda: load(path, mmap=True), lambda: with_computed_offsets(path)):
            found = load_it()
            equal(list(found), ["huge", *state], "the list of names")
            equal(tuple(found["huge"].shape), (max(MARKS) + 1,), "the shape of the huge tensor")
            equal({at: found["huge"][at].item() for at in MARKS}, MARKS, "marks in the huge tensor")
            for name, tensor in wanted.items():
                same_tensor(name, found[name], tensor)
    finally:
        path.unlink(missing_ok=True)


def sparse(path, size, state):
    """A safetensors file: a uint8 tensor `huge`, zeros but for the marks, then the float32 tensors of `state`."""
    entries = {"huge": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    end = size
    for name, tensor in state.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for at, value in MARKS.items():
            file.seek(start + at)
            file.write(bytes([value]))
        file.seek(start + size)
        for tensor in state.values():
            file.write(raw(tensor).numpy().tobytes())
