"""Whole pickled modules: what is in them as `state_dict()` names it."""

import sys
import types

import torch
from torch import nn

import diff_expect
from diff_saves import CONTAINERS, load


class Branch(nn.Module):
    """A class of `__main__`, when it is pickled: see `in_main`."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4))
        self.scale = nn.Parameter(torch.rand(4))
        self.frozen = nn.Parameter(torch.rand(2), requires_grad=False)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("hidden", torch.rand(5), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("absent", None)
        self.options = {"rate": 0.1, "names": ["a", "b"], "shape": torch.Size([1, 2])}
        self.activation = torch.relu

    def forward(self, x):
        """As models have it."""
        return self.inner(x) * self.scale


class Root(nn.Module):
    """Modules in lists and dictionaries, parameters in lists and dictionaries, a module under two names."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Branch(), Branch()])
        self.heads = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Identity()})
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(3))])
        self.table = nn.ParameterDict({"x": nn.Parameter(torch.rand(2))})
        self.twin = self.blocks[0]
        self.encoder = nn.Embedding(6, 3, padding_idx=0)
        self.decoder = nn.Linear(3, 6, bias=False)
        self.decoder.weight = self.encoder.weight


def models():
    """(what, model)."""
    yield "linear", nn.Linear(3, 2)
    yield "no parameters", nn.ReLU()
    yield "sequential", nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.PReLU()))
    yield "nested", Root()
    yield "DataParallel", nn.DataParallel(Root())
    yield "transformer", nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)
    yield "LSTM", nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    yield "multihead attention", nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
    yield "half precision", Branch().half()
    yield "bfloat16, channels last", nn.Conv2d(3, 4, 3).bfloat16().to(memory_format=torch.channels_last)
    yield "weight norm", nn.utils.weight_norm(nn.Linear(3, 4))
    yield "batch norm without statistics", nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    trained = Branch()
    trained(torch.rand(4, 3)).sum().backward()
    trained.zero_grad(set_to_none=True)
    yield "used for training", trained


def write(cases):
    """Modules alone, of classes of several kinds, and in a dictionary."""
    torch.manual_seed(17)
    for container, new in CONTAINERS.items():
        cases.group = "whole modules, " + container
        with in_module("__main__"):
            for what, model in models():
                save(cases, what, model, new)
            for protocol in (3, 4, 5):
                save(cases, "protocol %d" % protocol, Root(), new, pickle_protocol=protocol)
            path = cases.path("in a dictionary.pth")
            model = Root()
            torch.save(
                {"model": model, "epoch": 3, "ema": model.state_dict()}, path, _use_new_zipfile_serialization=new
            )
            loaded = load(path)
            whole = {"model." + k: v for k, v in loaded["model"].state_dict().items()}
            whole.update(("ema." + k, v) for k, v in loaded["ema"].items())
            add(cases, "in a dictionary", path, whole, loaded)
        with in_module("a_module_of_the_user.that.nobody_has"):
            save(cases, "a class of a module that cannot be imported", Root(), new)


class in_module:
    """The classes of this file are pickled as classes of another module."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.own = Root.__module__
        if self.name != "__main__":
            parts = self.name.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                sys.modules[name] = types.ModuleType(name)
        for each in (Root, Branch):
            setattr(sys.modules[self.name], each.__name__, each)
            each.__module__ = self.name

    def __exit__(self, *_):
        for each in (Root, Branch):
            each.__module__ = self.own


def save(cases, what, model, new, **how):
    """torch.save of a module, torch.load, and its state dict."""
    path = cases.path(what + ".pth")
    torch.save(model, path, _use_new_zipfile_serialization=new, **how)
    loaded = load(path)
    add(cases, what, path, loaded.state_dict(), loaded)


def add(cases, what, path, state, loaded):
    """The state dict must be listed; what else is in the file, buffers that are not saved and caches, may be."""
    tensors, others = diff_expect.state(state)
    everything, _ = diff_expect.listing(loaded)
    cases.add(what, path, tensors, others, allowed=everything)
