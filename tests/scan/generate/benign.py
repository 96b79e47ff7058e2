"""Honest files: what must not be reported, or be reported as unknown at most."""

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import random
import re
import zipfile

import numpy as np
import torch

FILES = []


def honest(file, what, content, level="clean", loader=None):
    """Adds a file to the set."""
    FILES.append(dict(file=file, technique=what, source="none", content=content, loader=loader, level=level, rule=None))


def saved(thing, **options):
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(thing, buffer, **options)
    content = buffer.getvalue()
    if not options.get("_use_new_zipfile_serialization", True):
        # The keys of storages are addresses: the same ones every time make the same file.
        keys = dict.fromkeys(re.findall(rb"X\x0e\x00\x00\x00(\d{14})", content))
        for index, key in enumerate(keys):
            content = content.replace(key, b"%014d" % (index + 1))
    return content


def rezipped(content, method):
    """The same archive by Python's zipfile."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for info in old.infolist():
            new.writestr(zipfile.ZipInfo(info.filename), old.read(info.filename), method)
    return buffer.getvalue()


class Net(torch.nn.Module):
    """A small module of this file."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


def everything():
    """All honest files."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    net = Net()
    state = net.state_dict()
    honest("state.pth", "a state dict", saved(state))
    honest("state_legacy.pth", "a state dict before PyTorch 1.6", saved(state, _use_new_zipfile_serialization=False))
    honest("state_deflated.pth", "deflated by zipfile", rezipped(saved(state), zipfile.ZIP_DEFLATED))
    honest("state_stored.pth", "stored by zipfile", rezipped(saved(state), zipfile.ZIP_STORED))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    honest("training.pth", "a training checkpoint", saved({"model": state, "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5, "name": "x", "rng": torch.get_rng_state()}))
    honest("arguments.pth", "with argparse.Namespace", saved({"model": state, "args": argparse.Namespace(lr=0.1, path=pathlib.PosixPath("/x"), when=datetime.datetime(2024, 1, 1))}))
    honest("numpy_scalars.pth", "with numbers and arrays of NumPy", saved({"accuracy": np.float64(0.5), "losses": np.arange(5.0), "random": np.arange(300)}))
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16]
    honest("dtypes.pth", "many element types", saved({str(t): torch.arange(4).to(t) for t in dtypes}))
    honest("parameters.pth", "parameters and sizes", saved({"p": torch.nn.Parameter(torch.ones(2)), "size": torch.Size([1, 2]), "dtype": torch.float32, "device": torch.device("cpu")}))
    honest("views.pth", "views of one storage", saved([torch.arange(10.0)[2:8:2], torch.arange(6.0).reshape(2, 3).t(), torch.empty(0)]))
    honest("sparse.pth", "a sparse tensor", saved(torch.eye(3).to_sparse()))
    honest("collections.pth", "sets, counters and bytes", saved({"s": {1, 2}, "c": collections.Counter("abc"), "b": b"\x00\xff", "z": 1j, "a": bytearray(b"xyz"), "deque": [1, 2.5, None, True, 10**30]}))
    honest("protocol4.pth", "pickled with protocol 4", saved(state, pickle_protocol=4))
    honest("module.pth", "a whole module", saved(net), "unknown")
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    honest("script.pt", "TorchScript", buffer.getvalue())
    honest("plain.pkl", "plain values", pickle.dumps({"a": [1, 2.0, "x", None, (1, 2)], "b": b"bytes", "c": {1, 2}}, 4), loader="pickle")
    honest("plain_0.pkl", "plain values, protocol 0", pickle.dumps({"a": [1, 2.0, "x", None, (1, 2)]}, 0), loader="pickle")
    honest("types.pkl", "harmless types", pickle.dumps([collections.deque([1]), collections.defaultdict(list, a=[1]), datetime.date(2024, 1, 1), pathlib.PurePosixPath("/x"), np.float32(1), np.ones(3), np.dtype("f4"), complex(1, 2), frozenset([1])], 4), loader="pickle")
    honest("array.pkl", "an array, protocol 2", pickle.dumps(np.random.bytes(500) and np.arange(200), 2), loader="pickle")
    buffer = io.BytesIO()
    np.save(buffer, np.arange(100.0))
    honest("array.npy", "an array", buffer.getvalue(), loader="numpy")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(100.0), b=np.ones(3))
    honest("arrays.npz", "arrays", buffer.getvalue(), loader="numpy")
    from safetensors.torch import save

    honest("tensors.safetensors", "safetensors", save({"x": torch.ones(3), "y": torch.zeros(2, 2)}, {"note": "cos system"}))
    honest("words.txt", "text", b"cat\ndog\nRover\nclass\nname\nitem\nconfiguration\nvalue\n" * 20)
    honest("readme.md", "text about pickles", b"# Pickles\n\nThe opcode `c` imports: `cos\\nsystem`.\nA call is `R`.\n")
    honest("random.bin", "random bytes", random.Random(2).randbytes(6000))
    return FILES
