"""torch.distributed.checkpoint: folders written by one process and by two, of whole tensors and of parts."""

import multiprocessing
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from diff_saves import load
from diff_tensors import layouts, savable, short, values


def write(cases):
    """One process without a group, one with, two."""
    cases.group = "torch.distributed.checkpoint"
    state = {short(dtype): values(dtype, 12, 81).view(3, 4) for dtype in savable() if known(dtype)}
    save(cases, "types", {"model": state, "epoch": 3})
    save(cases, "layouts", {"model": layouts(torch.float32, 82), "other": [{"a": torch.arange(3)}, 5]})
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    save(cases, "training", {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "note": "text"})
    save(cases, "odd names", {"a.b": torch.rand(2), "a b": {"c.d": torch.rand(2)}, "0": torch.rand(1)})
    for world in (1, 2):
        path = cases.path("%d processes.folder" % world)
        together(world, str(path), "file://%s" % (cases.folder / ("store%d" % world)))
        loaded(cases, "%d processes" % world, path)
        if len(list(path.glob("*.distcp"))) != world:
            cases.broken("%d processes" % world, ValueError("not each of them wrote"))


def known(dtype):
    """Whether dcp.save can write that type."""
    try:
        return bool(torch._utils._element_size(dtype))
    except TypeError:
        return False


def together(world, *where):
    """Several processes, of which this is the first, write one checkpoint."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=rank, args=(number, world, *where)) for number in range(1, world)]
    for process in others:
        process.start()
    try:
        rank(0, world, *where)
        for process in others:
            process.join(60)
    finally:
        for process in others:
            process.kill()


def rank(number, world, path, store):
    """One of the processes."""
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=world, timeout=timedelta(seconds=60))
    dcp.save(distributed(world), checkpoint_id=path)
    dist.destroy_process_group()


def distributed(world):
    """Tensors in parts: even, uneven, along every dimension, whole on each process."""
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(7)
    matrix, row, cube = torch.rand(5, 4), torch.arange(7), torch.rand(3, 4, 5).bfloat16()
    return {
        "model": {
            "rows": distribute_tensor(matrix, mesh, [Shard(0)]),
            "columns": distribute_tensor(matrix, mesh, [Shard(1)]),
            "whole": distribute_tensor(matrix, mesh, [Replicate()]),
            "uneven": distribute_tensor(row, mesh, [Shard(0)]),
            "cube.0": distribute_tensor(cube, mesh, [Shard(0)]),
            "cube.1": distribute_tensor(cube, mesh, [Shard(1)]),
            "cube.2": distribute_tensor(cube, mesh, [Shard(2)]),
            "one row": distribute_tensor(torch.rand(1, 6), mesh, [Shard(0)]),
            "plain": torch.rand(3).t(),
            "scalar": torch.tensor(2.5),
        },
        "step": 7,
    }


def save(cases, what, state):
    """dcp.save of one process without a group."""
    path = cases.path(what + ".folder")
    dcp.save(state, checkpoint_id=str(path), no_dist=True)
    loaded(cases, what, path)


def loaded(cases, what, path):
    """What PyTorch's own converter makes of the folder."""
    whole = cases.path(what + " converted.pth")
    dcp_to_torch_save(str(path), str(whole))
    cases.add_object(what, path, load(whole), any_order=True)
