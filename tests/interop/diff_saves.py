"""torch.save of tensors: every type and layout, as zip archive and as legacy stream, shared and tied, on any device."""

import collections
import contextlib
import io

import torch

from diff_tensors import layouts, savable, short, unlisted, values

CONTAINERS = {"zip": True, "legacy stream": False}


def write(cases):
    """All forms in both containers."""
    for container, new in CONTAINERS.items():
        cases.group = container + ", types and layouts"
        if unlisted():
            cases.broken("all types", ValueError("types that are not tried: %s" % unlisted()))
        for dtype in savable(new):
            save(cases, short(dtype), layouts(dtype, 7), new)
        cases.group = container + ", pickle protocols"
        for protocol in range(1, 6):
            save(cases, "protocol %d" % protocol, layouts(torch.float32, protocol), new, pickle_protocol=protocol)
        cases.group = container + ", aliases and sharing"
        for what, obj in aliases():
            save(cases, what, obj, new)
        cases.group = container + ", devices"
        for location in ("cuda:0", "cuda:3", "mps", "xpu:1", "hpu", "meta"):
            with located(location):
                save(cases, location, {"on": layouts(torch.float16, 5), "same": torch.arange(5)}, new)
    cases.group = "zip, how it is written"
    containers(cases)


def save(cases, what, obj, new=True, **how):
    """torch.save, torch.load, and what that gives."""
    path = cases.path(what + ".pth")
    torch.save(obj, path, _use_new_zipfile_serialization=new, **how)
    cases.add_object(what, path, load(path))


def load(path):
    """What this PyTorch reads; with `weights_only=False` where it has the choice."""
    kwargs = {} if torch.__version__.startswith("1.") else {"weights_only": False}
    return torch.load(path, map_location="cpu", **kwargs)


@contextlib.contextmanager
def located(location):
    """Storages are saved as if they were on that device."""
    original = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: location
    try:
        yield
    finally:
        torch.serialization.location_tag = original


def aliases():
    """(what, object) for the ways in which tensors, storages and containers are shared."""
    state = collections.OrderedDict((k, v) for k, v in layouts(torch.float32, 3).items())
    yield "one dictionary under two names", {"model": state, "ema": state}
    yield "two dictionaries of the same tensors", {"model": dict(state), "ema": dict(state), "epoch": 3}
    yield "copies", {"model": state, "ema": {k: v.clone() for k, v in state.items()}}
    yield "views of the same storages", {"model": state, "ema": {k: v[...] for k, v in state.items()}}
    yield "list of one dictionary, again and again", [state] * 5
    flat = values(torch.bfloat16, 100, 9)
    yield "one flat buffer", {"flat." + str(i): flat[i * 10 : i * 10 + 10].view(2, 5) for i in range(10)}
    yield (
        "one flat buffer, last part first",
        {str(i): flat[i * 10 : i * 10 + 10].view(5, 2).t() for i in range(9, -1, -1)},
    )
    yield "reversed strides by flip", {"flipped": torch.arange(12).view(3, 4).flip(0)}
    linear = torch.nn.Linear(3, 5)
    tied = {"encoder.weight": linear.weight, "decoder.weight": linear.weight, "decoder.bias": linear.bias}
    yield "tied parameters", tied
    yield "a parameter and its data", {"parameter": linear.weight, "data": linear.weight.data, "row": linear.weight[1]}
    yield "a bare tensor", torch.arange(7.0)
    yield "a bare parameter", torch.nn.Parameter(torch.arange(3.0))
    yield "a list of tensors", [torch.arange(3), torch.zeros(0), torch.tensor(True)]
    yield "a tuple", (torch.arange(3), {"a": (torch.ones(1), [torch.ones(2)])})
    yield "no tensor at all", {"epoch": 3, "names": ["a", "b"]}
    yield "nothing", {}
    looped = [torch.arange(4)]
    looped.append(looped)
    looped.append({"back": looped, "tensor": looped[0]})
    yield "a list that contains itself", looped
    loop = {"t": torch.arange(2)}
    loop["self"] = loop
    yield "a dictionary that contains itself", loop
    yield "storages beside tensors", {"tensor": flat, "storage": flat.storage()}
    yield "gradients wanted and hooks", {"w": torch.ones(3, requires_grad=True)}
    yield "512 tensors", {"t%d" % i: torch.full((2,), float(i)) for i in range(512)}
    yield "one storage, 300 views", {str(i): flat[i % 90 : i % 90 + 7] for i in range(300)}


def containers(cases):
    """How else the archive comes about."""
    state = layouts(torch.float32, 11)
    typed = torch.arange(3).storage()
    untyped = typed.untyped() if hasattr(typed, "untyped") else typed._storage
    save(cases, "an untyped storage beside tensors", {**state, "untyped": untyped})
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = cases.path("from memory.pth")
    path.write_bytes(buffer.getvalue())
    cases.add_object("from memory", path, load(path))
    for name in ("model.best.bin", "no_suffix", "model.ckpt", "ünïcode näme.pt", "data.pth"):
        path = cases.folder / name
        torch.save(state, path)
        cases.add_object(name, path, load(path))
    with open(cases.path("behind a header.pth"), "w+b") as file:
        torch.save(state, file)
    cases.add_object("an open file", file.name, load(file.name))
