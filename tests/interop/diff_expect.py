"""What a reader must find in an object: every tensor by its dotted path, under the names that the program gives.

The names follow the objects as pickle sees them: keys and list positions joined by dots; an object's attributes by
their names, what it is made with under `args`, a state that is no dictionary under `state`. Runs under old PyTorch.
"""

import collections
import copyreg
import ctypes
import hashlib
import pickle
import types

import numpy
import torch

SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SPARSE = {
    getattr(torch, name): name
    for name in ("sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
    if hasattr(torch, name)
}
LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, pickle.PickleBuffer, numpy.generic)
LEAVES += (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.qscheme)
NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
MAPS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
LISTS = (list, tuple, set, frozenset, torch.Size)


def content(tensor):
    """The contiguous bytes of a tensor, in this machine's order."""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    plain = tensor.detach().as_subclass(torch.Tensor)
    size = plain.element_size()
    # Some types can be stored and viewed, and nothing else.
    plain = (plain if size == 16 else plain.view(SAME_SIZE[size])).contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.numel() * plain.element_size()) if plain.numel() else b""


def facts(tensor):
    """Type, shape and SHA-256 of a tensor."""
    return {
        "dtype": str(tensor.dtype).replace("torch.", ""),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(content(tensor)).hexdigest(),
    }


def kind(tensor):
    """None for a tensor that is a strided row of bytes; else what the program calls its kind."""
    if tensor.device.type == "meta":
        return "meta"
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_nested:
        return "nested"
    if tensor.layout in SPARSE:
        return SPARSE[tensor.layout]
    if type(tensor) is not torch.Tensor and tensor.data_ptr() == 0 and tensor.numel():
        return "subclass"
    return None


def other(tensor):
    """Kind, type and shape of a tensor that is no row of bytes; the shape of a nested one is not compared."""
    shape = None if tensor.is_nested else list(tensor.shape)
    return {"kind": kind(tensor), "dtype": str(tensor.dtype).replace("torch.", ""), "shape": shape}


def listing(obj, protocol=2):
    """(tensors, others) of an object that was pickled with that protocol, each with its name."""
    walk = Walk(protocol)
    walk.visit(obj, "")
    return walk.tensors, walk.others


def state(tensors):
    """(tensors, others) of a state dict by its own names."""
    found, others = [], []
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            special = kind(tensor)
            (others if special else found).append({"name": name, **(other(tensor) if special else facts(tensor))})
    return found, others


def key_text(key):
    """The path segment of a dictionary key."""
    if isinstance(key, numpy.generic):
        key = key.item()
    if isinstance(key, str):
        return key
    if isinstance(key, bool) or key is None:
        return str(key)
    if isinstance(key, int):
        return str(key) if -(1 << 63) <= key < 1 << 63 else "<key>"
    if isinstance(key, float):
        return repr(key)
    if type(key) in (tuple, torch.Size):
        return "(" + ",".join("(...)" if type(item) is tuple else key_text(item) for item in key[:8]) + ")"
    return "<key>"


def join(path, segment):
    """`path.segment`."""
    return path + "." + segment if path else segment


class Walk:
    """Lists the tensors below an object."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.tensors = []
        self.others = []
        self.open = set()

    def visit(self, obj, path):
        """Append every tensor below `obj`."""
        if isinstance(obj, torch.Tensor):
            if kind(obj):
                self.others.append({"name": path, **other(obj)})
            else:
                self.tensors.append({"name": path, **facts(obj)})
            return
        if isinstance(obj, LEAVES) or isinstance(obj, NAMED) or id(obj) in self.open:
            return
        self.open.add(id(obj))
        pairs, lists = self.children(obj)
        for number, (key, value) in enumerate(pairs):
            if not isinstance(key, (*LEAVES, *NAMED)):
                self.visit(key, join(path, "<key %d>" % number))
            nameless = not isinstance(key, str) and key_text(key) == "<key>"
            self.visit(value, join(path, "<value %d>" % number if nameless else key_text(key)))
        for prefix, items in lists:
            below = join(path, prefix) if prefix else path
            for number, item in enumerate(items):
                self.visit(item, join(below, str(number)))
        self.open.remove(id(obj))

    def children(self, obj):
        """(pairs, lists) below an object."""
        if type(obj) in MAPS:
            return list(obj.items()), []
        if type(obj) in LISTS:
            return [], [("", list(obj))]
        reduced = obj.__reduce_ex__(self.protocol)
        if isinstance(reduced, str):
            return [], []
        made, args, state_, items, entries = (*reduced, None, None, None)[:5]
        if made is copyreg.__newobj__:
            args = args[1:]
        elif made is copyreg.__newobj_ex__:
            args = (*args[1], args[2])
        pairs = list(entries or ())
        lists = [("", list(items or ())), ("args", list(args))]
        if isinstance(state_, dict):
            pairs += state_.items()
        elif state_ is not None:
            lists.append(("state", [state_]))
        return pairs, lists
