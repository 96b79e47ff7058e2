"""TorchScript archives: what `state_dict()` of the loaded module holds, whatever else is in the file."""

import io
import pickle
import zipfile
from typing import Dict, List

import torch
from torch import nn

import diff_expect


class Block(nn.Module):
    """A layer with a buffer, a buffer that is not saved by state_dict, and attributes."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("scale", torch.rand(width))
        self.register_buffer("hidden", torch.rand(width), persistent=False)
        self.factor = 2.5
        self.name = "block"
        self.plain = torch.rand(3)

    def forward(self, x):
        return self.linear(x) * self.scale * self.factor + self.hidden + self.plain.sum()


class Nested(nn.Module):
    """Modules in lists and dictionaries, lists and dictionaries of tensors, an optional value."""

    tensors: List[torch.Tensor]
    table: Dict[str, torch.Tensor]

    def __init__(self, width=4):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.heads = nn.ModuleDict({"first": nn.Linear(width, 2), "second": nn.Linear(width, 3, bias=False)})
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.embed = nn.Parameter(torch.rand(1, width).half())
        self.tensors = [torch.rand(2), torch.rand(2, 2)]
        self.table = {"a": torch.arange(3)}
        self.sizes = (1, 2, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["first"](x + self.tensors[0].sum() + self.table["a"].sum() + self.sizes[1])


class Tied(nn.Module):
    """Two layers with one weight, and views of one storage."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight
        flat = torch.rand(40)
        self.register_buffer("part", flat[3:9].view(2, 3))
        self.register_buffer("turned", flat[10:22].view(3, 4).t())
        self.register_buffer("wide", flat[:4].view(1, 4).expand(3, 4))
        self.register_buffer("scalar", torch.tensor(5))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("byte", torch.arange(4, dtype=torch.uint8))
        self.register_buffer("complex", torch.view_as_complex(torch.rand(3, 2)))

    def forward(self, x):
        return self.decoder(self.encoder(x)) + self.part.sum() + self.turned.sum() + self.wide.sum()


class Odd(nn.Module):
    """Buffers that are None, a half-precision and a bfloat16 layer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("none", None)
        self.register_parameter("nothing", None)
        self.f16 = nn.Linear(3, 3).half()
        self.bf16 = nn.Linear(3, 3).bfloat16()
        self.f64 = nn.LayerNorm(3).double()

    def forward(self, x):
        return x


def write(cases):
    """Scripted, traced, frozen, with other files, deflated."""
    torch.manual_seed(3)
    cases.group = "TorchScript"
    x = torch.rand(2, 4)
    for what, model in (("nested", Nested()), ("tied", Tied()), ("odd", Odd()), ("linear", nn.Linear(4, 2))):
        save(cases, "script " + what, torch.jit.script(model), model)
        if what != "odd":
            save(cases, "trace " + what, torch.jit.trace(model, x, check_trace=False), model)
    mixed = nn.Sequential(torch.jit.trace(Block(4), x, check_trace=False), torch.jit.script(Block(4)))
    save(cases, "script of traced", torch.jit.script(mixed), mixed)
    frozen = torch.jit.freeze(torch.jit.script(Tied().eval()))
    save(cases, "frozen", frozen, frozen)
    function = torch.jit.trace(lambda a: a * torch.tensor([1.0, 2.0]), torch.rand(2))
    save(cases, "a function with a constant", function, None)
    extra = {"info.json": "{}", "a/b.bin": "text"}
    save(cases, "extra files", torch.jit.script(Nested()), None, _extra_files=extra)
    first = next(case["file"] for case in cases.cases if case["group"] == cases.group)
    for what, compression in (("deflated", zipfile.ZIP_DEFLATED), ("stored", zipfile.ZIP_STORED)):
        path = cases.path(what + ".pt")
        with zipfile.ZipFile(first) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name), compress_type=compression if "/code/" in name else None)
        loaded(cases, "code " + what, path)


def save(cases, what, scripted, model, **how):
    """torch.jit.save and torch.jit.load."""
    path = cases.path(what + ".pt")
    torch.jit.save(scripted, str(path), **how)
    loaded(cases, what, path)
    if model is not None:
        # TorchScript forgets which buffers are not persistent.
        missing = set(model.state_dict()) - {tensor["name"] for tensor in cases.cases[-1]["tensors"]}
        if missing:
            cases.broken(what, ValueError("torch.jit.save lost %s" % missing))


def loaded(cases, what, path):
    """The state dict, which has to be the part that is listed unless another is asked for; where it is empty, the constants."""
    tensors, _ = diff_expect.state(torch.jit.load(str(path)).state_dict())
    if not tensors:
        tensors = [{"name": "<loose 0>.%d" % i, **diff_expect.facts(t)} for i, t in enumerate(constants(path))]
    cases.add(what, path, tensors, any_order=True, root=None)


def constants(path):
    """The tensors in `constants.pkl`."""
    reader = torch._C.PyTorchFileReader(str(path))
    records = {name: reader.get_record(name) for name in reader.get_all_records()}
    if "constants.pkl" not in records:
        return []

    class Constants(pickle.Unpickler):
        """Storages from the records."""

        def persistent_load(self, saved):
            _, kind, key, _, count = saved
            dtype = kind.dtype
            data = records.get("constants/" + key) or records.get("data/" + key) or b""
            tensor = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return tensor.storage()

    return Constants(io.BytesIO(records["constants.pkl"])).load()
