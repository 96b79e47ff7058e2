"""Every function that a pickle may rebuild a tensor with, by PyTorch itself and by hand."""

import collections

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.two_tensor import TwoTensor

import diff_expect
from diff_saves import load


class Call:
    """Pickled as a call of a function, whatever PyTorch itself would write."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


class Tagged(torch.Tensor):
    """A tensor class with attributes."""


def write(cases):
    """By hand, subclasses, distributed ones."""
    cases.group = "rebuild functions"
    for what, obj in by_hand():
        save(cases, what, {"before": torch.arange(2), "w": obj, "after": torch.arange(3)})
    for what, obj in with_attributes():
        save(cases, what, {"before": torch.arange(2), "w": obj, "after": torch.arange(3)})
    inner = torch.arange(4.0)
    for what, obj in (
        ("tensors as attributes", tagged(torch.rand(3).as_subclass(Tagged), mask=inner)),
        ("a parameter with tensors as attributes", tagged(torch.nn.Parameter(torch.rand(3)), scales=[inner])),
    ):
        save(cases, what, {"w": obj}, allowed=[diff_expect.facts(inner)], may_refuse=True)
    two = TwoTensor(torch.arange(6.0).view(2, 3), torch.arange(6.0, 12.0).view(2, 3))
    parts = [diff_expect.facts(part) for part in (two.a, two.b)]
    save(cases, "a wrapper around two tensors", {"a": torch.arange(2), "w": two}, allowed=parts)
    distributed(cases)


def by_hand():
    """(what, object that is loaded as a tensor)."""
    utils, hooks = torch._utils, collections.OrderedDict
    storage = torch.arange(12.0).storage()
    untyped = torch.arange(12, dtype=torch.int16).view(torch.uint16).untyped_storage()
    view = 2, (2, 4), (1, 2)
    yield "_rebuild_tensor", Call(utils._rebuild_tensor, storage, *view)
    yield "_rebuild_tensor_v2", Call(utils._rebuild_tensor_v2, storage, *view, True, hooks())
    yield "_rebuild_tensor_v2 with metadata", Call(utils._rebuild_tensor_v2, storage, *view, False, hooks(), {})
    yield "_rebuild_tensor_v2, no hooks", Call(utils._rebuild_tensor_v2, storage, *view, False, None)
    yield "_rebuild_tensor_v3", Call(utils._rebuild_tensor_v3, untyped, *view, False, hooks(), torch.uint16)
    yield (
        "_rebuild_tensor_v3 of 2-byte floats",
        Call(utils._rebuild_tensor_v3, untyped, *view, False, hooks(), torch.bfloat16),
    )
    data = torch.rand(2, 3).t()
    yield "_rebuild_parameter", Call(utils._rebuild_parameter, data, True, hooks())
    yield "_rebuild_parameter_with_state", Call(utils._rebuild_parameter_with_state, data, False, hooks(), {"tag": 1})
    args = (storage, *view, False, hooks())
    yield "_rebuild_from_type", Call(torch._tensor._rebuild_from_type, utils._rebuild_tensor_v2, Tagged, args, {"a": 1})
    yield (
        "_rebuild_from_type_v2",
        Call(torch._tensor._rebuild_from_type_v2, utils._rebuild_tensor_v2, Tagged, args, {"a": 1}),
    )
    yield (
        "_rebuild_from_type_v2, slots",
        Call(torch._tensor._rebuild_from_type_v2, utils._rebuild_tensor_v2, torch.nn.Parameter, args, ({"a": 1}, {})),
    )
    yield (
        "_rebuild_meta_tensor_no_storage",
        Call(utils._rebuild_meta_tensor_no_storage, torch.float16, (2, 3), (1, 2), False),
    )
    yield "a size as torch.Size", Call(utils._rebuild_tensor_v2, storage, 2, torch.Size((2, 4)), (1, 2), False, hooks())
    yield "lists for size and stride", Call(utils._rebuild_tensor_v2, storage, 2, [2, 4], [1, 2], False, hooks())


def tagged(tensor, **attributes):
    """A tensor with attributes."""
    for name, value in attributes.items():
        setattr(tensor, name, value)
    return tensor


def with_attributes():
    """(what, tensor that PyTorch pickles with more than its values)."""
    yield "a tensor class", torch.rand(2, 3).as_subclass(Tagged)
    yield "a tensor class with attributes", tagged(torch.rand(2, 3).as_subclass(Tagged), tag="text", size_=(1, 2))
    yield "a plain tensor with attributes", tagged(torch.rand(2, 3), tag="text")
    yield "a parameter with attributes", tagged(torch.nn.Parameter(torch.rand(2, 3)), is_norm=True, group={"lr": 0.1})
    yield "a parameter class with attributes", tagged(torch.nn.Parameter(torch.rand(2).as_subclass(Tagged)), tag=1)
    yield "a buffer", torch.nn.Buffer(torch.rand(3))
    yield "a parameter of a newer type", torch.nn.Parameter(torch.arange(3).to(torch.uint16), requires_grad=False)


def save(cases, what, obj, **rules):
    """torch.save and torch.load."""
    path = cases.path(what + ".pth")
    torch.save(obj, path)
    cases.add_object(what, path, load(path), **rules)


def distributed(cases):
    """A DTensor over one process is all of the tensor."""
    cases.group = "DTensor"
    dist.init_process_group("gloo", init_method="file://%s" % (cases.folder / "store"), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    whole = torch.rand(4, 6)
    half = torch.arange(6).half()
    state = {
        "replicated": distribute_tensor(whole, mesh, [Replicate()]),
        "rows": distribute_tensor(whole, mesh, [Shard(0)]),
        "columns": distribute_tensor(whole.t(), mesh, [Shard(1)]),
        "parameter": torch.nn.Parameter(distribute_tensor(half, mesh, [Shard(0)])),
    }
    for what, names in (("each", None), *((name, [name]) for name in state)):
        path = cases.path(what + ".pth")
        torch.save({**{name: state[name] for name in names or state}, "plain": torch.arange(3)}, path)
        tensors = {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in load(path).items()}
        cases.add_object(what, path, tensors)
    dist.destroy_process_group()
