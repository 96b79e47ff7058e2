"""Reading checkpoints as their users do, and comparing tensors bit by bit."""

import hashlib
import json
import struct

import torch
from safetensors.torch import load_file

from report import equal, expect


def raw(tensor):
    """The values of a tensor as a row of bytes, whatever its type and strides."""
    copy = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return copy.reshape(-1).view(torch.uint8)


def describe(tensor):
    """Type, shape and SHA-256 of the values, as in fixtures/expected."""
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(raw(tensor).numpy().tobytes()).hexdigest(),
    }


def header(path):
    """The JSON header of a safetensors file, in the file's order."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def load(path, **how):
    """The state dict in a file that the program wrote, in the file's order, as PyTorch or safetensors reads it."""
    if path.suffix == ".safetensors":
        names = [name for name in header(path) if name != "__metadata__"]
        loaded = load_file(path)
        equal(sorted(loaded), sorted(names), "what load_file finds")
        return {name: loaded[name] for name in names}
    return torch.load(path, weights_only=True, **how)


def trusted(path):
    """The state dict in a file of our own making, whatever objects are around it."""
    loaded = torch.load(path, map_location="cpu", weights_only=False)
    return loaded["model"] if "model" in loaded else loaded


def same_tensor(name, found, wanted):
    """Fail unless both have the same type, shape and bits."""
    equal(found.dtype, wanted.dtype, f"dtype of {name}")
    equal(tuple(found.shape), tuple(wanted.shape), f"shape of {name}")
    one, other = raw(found), raw(wanted)
    if not torch.equal(one, other):
        size = found.element_size()
        bad = (one != other).view(-1, size).any(1).nonzero().flatten()
        at = bad[0].item()
        pair = f"{found.reshape(-1)[at].item()!r} instead of {wanted.reshape(-1)[at].item()!r}"
        expect(False, f"{name}: {len(bad)} of {found.numel()} elements differ, first at {at}: {pair}")


def same_state(found, wanted):
    """Fail unless both hold the same names in the same order, and the same tensors."""
    one, other = list(found), list(wanted)
    if one != other:
        missing, extra = sorted(set(other) - set(one)), sorted(set(one) - set(other))
        first = next((pair for pair in zip(one, other) if pair[0] != pair[1]), None)
        expect(False, f"names differ: missing {missing[:5]}, extra {extra[:5]}, first out of order {first}")
    for name in wanted:
        same_tensor(name, found[name], wanted[name])
