"""Write src/scan/torch_allowed.txt and src/scan/python2_names.txt from the installed torch.

The first is what torch.load(weights_only=True) accepts, each name with what stands behind it; the second is how Python 3
renames the modules and names of Python 2 when it unpickles protocols below 3.
"""

import _compat_pickle
from pathlib import Path

import torch
from torch import _weights_only_unpickler as unpickler

SOURCE = Path(__file__).resolve().parents[3] / "src" / "scan"


def kind(value):
    """What a name stands for, in one word: the part of torch's behaviour that a verdict depends on."""
    if isinstance(value, torch.dtype):
        return "dtype"
    if isinstance(value, torch.qscheme):
        return "qscheme"
    if isinstance(value, torch.serialization.StorageType):
        return "storage"
    if value in (torch.storage.TypedStorage, torch.storage.UntypedStorage):
        return "storage-class"
    if isinstance(value, type):
        return "tensor-class" if value in torch._tensor_classes else "class"
    if callable(value):
        return "function"
    raise TypeError(f"{value!r} is of no kind that is known here")


def element(name, value):
    """Bytes of an element, for dtypes and storages; else nothing."""
    dtype = value if isinstance(value, torch.dtype) else getattr(value, "dtype", None)
    if name == "torch.storage.UntypedStorage":
        return " 1"
    return f" {torch._utils._element_size(dtype)}" if isinstance(dtype, torch.dtype) and kind(value) == "storage" else ""


def main():
    allowed = unpickler._get_allowed_globals()
    head = f"# What torch.load(weights_only=True) of torch {torch.__version__.split('+')[0]} accepts by default: name, kind,\n"
    head += "# bytes of an element of a storage. Written by tests/scan/generate/allowed.py.\n"
    lines = [f"{name} {kind(value)}{element(name, value)}\n" for name, value in sorted(allowed.items())]
    (SOURCE / "torch_allowed.txt").write_text(head + "".join(lines))
    torch_maps, python_maps = mappings(unpickler), mappings(_compat_pickle)
    head = "# How Python 3 renames what Python 2 pickled (`module > module`, `module name > module name`), for protocols below 3.\n"
    head += "# `torch` at the end: torch.load(weights_only=True) does so too. Written by tests/scan/generate/allowed.py.\n"
    assert torch_maps.items() <= python_maps.items() | torch_maps.items()
    lines = [
        f"{old} > {new}{' torch' if torch_maps.get(old) == new else ''}\n"
        for old, new in sorted((torch_maps | python_maps).items())
    ]
    # Where the two rename differently, the line is Python's, and torch's would be lost.
    assert all(python_maps.get(old, new) == new for old, new in torch_maps.items()), "the two rename differently"
    (SOURCE / "python2_names.txt").write_text(head + "".join(lines))
    print(f"{len(allowed)} allowed names, {len(lines)} renamed ones")


def mappings(module):
    """A module's two mappings, as texts."""
    names = {" ".join(old): " ".join(new) for old, new in module.NAME_MAPPING.items()}
    return {**module.IMPORT_MAPPING, **names}


if __name__ == "__main__":
    main()
