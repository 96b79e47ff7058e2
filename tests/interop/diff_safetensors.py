"""safetensors: every type and layout that the format takes, odd names, and headers as other writers make them."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diff_expect
from diff_tensors import layouts, savable, short, values

WITHOUT = ("complex128", "complex32", "bcomplex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2")


def write(cases):
    """Files of save_file and of our own."""
    cases.group = "safetensors, types and layouts"
    for dtype in savable():
        name = short(dtype)
        if name in WITHOUT or dtype == torch.float4_e2m1fn_x2:
            continue
        state = {key: whole(tensor) for key, tensor in layouts(dtype, 61).items()}
        save(cases, name, state)
        save(cases, name + " with metadata", state, {"format": "pt", "note": "ünïcode", "empty": ""})
    packed = values(torch.float4_e2m1fn_x2, 24, 62).view(4, 6)
    save(cases, "float4, two in a byte", {"weight": packed}, may_refuse=True)
    cases.group = "safetensors, names and headers"
    save(
        cases,
        "odd names",
        {name: torch.rand(2) for name in ("", "a.b", " ", "ünïcode", "日本", '"\\/', "tab\t", "x" * 2000)},
    )
    save(cases, "no tensor", {})
    save(cases, "many", {"t%05d" % i: torch.full((3,), i, dtype=torch.int16) for i in range(5000)})
    first, second = torch.rand(3, 2), torch.arange(5)
    parts = {"z": first, "a": second, "m": torch.rand(0, 4), "s": torch.tensor(1.5, dtype=torch.float64)}
    for what, order, spaces in (
        ("data in another order", list(reversed(parts)), 0),
        ("header with spaces", list(parts), 37),
    ):
        path = cases.path(what + ".safetensors")
        by_hand(path, parts, order, spaces)
        listed(cases, what, path)


def whole(tensor):
    """A contiguous copy; types that cannot be copied are viewed as integers meanwhile."""
    size = tensor.element_size()
    return (
        tensor.clone()
        if size == 16
        else tensor.view(diff_expect.SAME_SIZE[size]).clone().contiguous().view(tensor.dtype)
    )


def save(cases, what, state, metadata=None, **rules):
    """save_file."""
    path = cases.path(what + ".safetensors")
    save_file(state, path, metadata)
    listed(cases, what, path, **rules)


def listed(cases, what, path, **rules):
    """What load_file reads, in the header's order."""
    content = path.read_bytes()
    names = list(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))
    loaded = load_file(path)
    with safe_open(path, "pt") as file:
        if sorted(file.keys()) != sorted(loaded):
            cases.broken(what, ValueError("safe_open and load_file disagree"))
    tensors, others = diff_expect.state({name: loaded[name] for name in names if name != "__metadata__"})
    cases.add(what, path, tensors, others, **rules)


def by_hand(path, tensors, order, spaces):
    """A file whose header lists tensors in one order and whose data is in another."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.float64: "F64"}
    places, data = {}, b""
    for name in order:
        part = diff_expect.content(tensors[name])
        places[name], data = [len(data), len(data) + len(part)], data + part
    entries = {
        name: {"data_offsets": places[name], "shape": list(tensor.shape), "dtype": names[tensor.dtype]}
        for name, tensor in tensors.items()
    }
    text = json.dumps(entries, indent=2).encode() + b" " * spaces
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
