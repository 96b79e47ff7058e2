"""Training checkpoints: everything in one file, as training scripts and libraries save it."""

import argparse
import collections
import pathlib

import numpy
import torch
from torch import nn

import diff_classes
from diff_saves import CONTAINERS, load
from diff_tensors import layouts


def write(cases):
    """Each object in both containers."""
    torch.manual_seed(23)
    for container, new in CONTAINERS.items():
        cases.group = "training checkpoints, " + container
        for what, obj in objects():
            path = cases.path(what + ".ckpt")
            torch.save(obj, path, _use_new_zipfile_serialization=new)
            cases.add_object(what, path, load(path))


def trained():
    """A model, its optimizer after a step, and a schedule."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    return model, optimizer, schedule


def objects():
    """(what, object)."""
    model, optimizer, schedule = trained()
    state = model.state_dict()
    yield (
        "model, optimizer, ema that shares",
        {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
            "ema": collections.OrderedDict(("module." + name, tensor) for name, tensor in state.items()),
            "epoch": 3,
            "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data"), betas=(0.9, 0.999)),
        },
    )
    yield (
        "as Lightning saves",
        {
            "epoch": 1,
            "global_step": 20,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": collections.OrderedDict(("model." + name, tensor) for name, tensor in state.items()),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2, "completed": 1}}}},
            "callbacks": {
                "ModelCheckpoint{'monitor': 'val.loss', 'mode': 'min', 'every_n_train_steps': 0}": {
                    "best_model_score": torch.tensor(0.25),
                    "best_k_models": {"/a/b.ckpt": torch.tensor(0.25), "/a/c.ckpt": torch.tensor(0.5)},
                    "kth_value": torch.tensor(0.5),
                    "dirpath": "/a",
                },
                "EarlyStopping{'monitor': 'x'}": {"wait_count": 0, "best_score": torch.tensor(float("inf"))},
            },
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [schedule.state_dict()],
            "hparams_name": "config",
            "hyper_parameters": {"lr": 0.1, "config": diff_classes.DictConfig({"width": 3, "deep": {"rate": 0.5}})},
        },
    )
    yield (
        "configurations",
        {
            "state_dict": state,
            "dataclass": diff_classes.Config(4, extra=diff_classes.Config(5, extra=torch.arange(3))),
            "omegaconf": diff_classes.DictConfig({"a": 1, "b": {"c": [1, 2]}, "mean": torch.rand(3)}),
            "namespace": argparse.Namespace(mean=torch.rand(3), nested=argparse.Namespace(std=torch.rand(3))),
            "point": diff_classes.Point(torch.rand(1), 2),
            "enum": diff_classes.Colour.BLUE,
        },
    )
    yield (
        "tensors outside of any state dict",
        {
            "state_dict": state,
            "rng": torch.get_rng_state(),
            "cuda_rng": [torch.get_rng_state()[:16], torch.get_rng_state()[16:32]],
            "history": [(0, torch.tensor(0.5)), (1, torch.tensor(0.25))],
            "best": torch.tensor(0.25, dtype=torch.float64),
            "confusion": torch.zeros(2, 2, dtype=torch.int64),
        },
    )
    yield (
        "NumPy values",
        {
            "state_dict": state,
            "acc": numpy.float64(0.75),
            "step": numpy.int64(7),
            "flag": numpy.bool_(True),
            "half": numpy.float16(0.5),
            "text": numpy.str_("text"),
            "rng": numpy.random.RandomState(1).get_state(),
            "rngs": {"numpy": numpy.random.RandomState(2).get_state(), "python": (3, tuple(range(625)), None)},
        },
    )
    yield (
        "keys",
        {
            0: {"weight": torch.rand(2)},
            (1, 2): torch.rand(1),
            1.5: torch.rand(1),
            None: torch.rand(1),
            True: torch.rand(2),
            "": torch.rand(1),
            "a.b": {"c": torch.rand(1)},
            "a b": {"c.d e": torch.rand(1)},
            "ünïcode 日本": torch.rand(1),
            b"bytes": torch.rand(1),
            -3: torch.rand(1),
            2**62: torch.rand(1),
        },
    )
    for what, key in (("a large number", 2**70), ("a type", torch.float32), ("an object", diff_classes.Key("k", 2))):
        yield "a key that is " + what, {"state": {"w": torch.rand(1)}, key: torch.rand(2), "after": torch.rand(3)}
    yield (
        "collections",
        {
            "tuple": (torch.rand(1), (torch.rand(2), [torch.rand(3)])),
            "set": {torch.rand(1)},
            "frozenset": frozenset((torch.rand(2),)),
            "deque": collections.deque([torch.rand(1), torch.rand(2)], maxlen=5),
            "defaultdict": collections.defaultdict(list, {"a": [torch.rand(1)]}),
            "counter": collections.Counter("abca"),
            "ordered": collections.OrderedDict(a=torch.rand(1)),
            "sizes": torch.Size([1, 2, 3]),
            "table": filled(diff_classes.Table(a=torch.rand(1)), b=torch.rand(2)),
            "items": filled(diff_classes.Items([torch.rand(1)]), b=torch.rand(2)),
        },
    )
    yield "two keys, one name", {"a.b": torch.rand(1), "a": {"b": torch.rand(2)}}
    yield (
        "every layout in every place",
        {
            "state_dict": layouts(torch.float32, 31),
            "list": list(layouts(torch.int16, 32).values()),
            "object": diff_classes.Plain(**{"n" + str(i): t for i, t in enumerate(layouts(torch.bool, 33).values())}),
        },
    )
    for name in ("SGD", "Adagrad", "RMSprop", "Adam"):
        net = nn.Linear(3, 2)
        kind = getattr(torch.optim, name)
        step = kind(net.parameters(), lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        net(torch.rand(2, 3)).sum().backward()
        step.step()
        yield "optimizer " + name, {"optimizer": step.state_dict(), "model": net.state_dict()}
        yield "a whole optimizer " + name, {"optimizer": step, "model": net.state_dict()}


def filled(obj, **attributes):
    """`obj` with attributes."""
    obj.__dict__.update(attributes)
    return obj
