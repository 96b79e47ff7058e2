"""torch.package archives: state dicts and modules, with their code inside or outside."""

import sys

import torch
from torch.package import PackageExporter, PackageImporter

import diff_expect
from diff_tensors import layouts, savable, short

SOURCE = '''
import torch


class Net(torch.nn.Module):
    """A module that only its package knows."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        self.register_buffer("count", torch.arange(3))
        self.register_buffer("hidden", torch.arange(4.0), persistent=False)
        self.tied = torch.nn.Linear(3, 4)
        self.tied.weight = self.body[0].weight

    def forward(self, x):
        return self.body(x)
'''


def write(cases):
    """A state dict, a module with its code in the package, one with its code elsewhere, several pickles."""
    cases.group = "torch.package"
    modules = cases.folder / "code"
    modules.mkdir()
    (modules / "m2pt_packaged.py").write_text(SOURCE, encoding="utf-8")
    sys.path.insert(0, str(modules))
    import m2pt_packaged

    state = layouts(torch.float32, 21)
    state.update(("type." + short(dtype), layouts(dtype, 22)["transposed"]) for dtype in savable(False))
    save(cases, "a state dict", state)
    save(cases, "nested", {"model": state, "ema": dict(state), "epoch": 3, 5: [state["tied"]]})
    torch.manual_seed(5)
    for what in ("interned", "externed"):
        model = m2pt_packaged.Net()
        path = export(cases, "a module, " + what, {"model": model}, what)
        loaded = PackageImporter(str(path)).load_pickle("weights", "model.pkl")
        tensors, _ = diff_expect.state(loaded.state_dict())
        hidden = [diff_expect.facts(loaded.hidden)]
        cases.add("a module, " + what, path, tensors, allowed=hidden, suffix=True)
    path = export(
        cases, "two pickles", {"first": {"a": torch.arange(3)}, "second": {"b": torch.arange(4.0)}}, "externed"
    )
    importer = PackageImporter(str(path))
    tensors = [
        t
        for name in ("first", "second")
        for t in diff_expect.listing(importer.load_pickle("weights", name + ".pkl"))[0]
    ]
    cases.add("two pickles", path, tensors, suffix=True, any_order=True)


def export(cases, what, objects, how):
    """Write a package."""
    path = cases.path(what + ".pt")
    with PackageExporter(str(path)) as exporter:
        getattr(exporter, how[:6])("m2pt_packaged")
        exporter.extern(["torch", "torch.**", "numpy", "numpy.**", "collections"])
        for name, obj in objects.items():
            exporter.save_pickle("weights", name + ".pkl", obj)
        exporter.save_text("notes", "readme.txt", "text beside the weights")
    return path


def save(cases, what, obj):
    """One pickle."""
    path = export(cases, what, {"model": obj}, "externed")
    tensors, others = diff_expect.listing(PackageImporter(str(path)).load_pickle("weights", "model.pkl"), 3)
    cases.add(what, path, tensors, others, suffix=True)
