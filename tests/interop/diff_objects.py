"""Random nested objects: of everything that pickle can take, with tensors all over it, shared and in cycles."""

import argparse
import collections
import datetime
import decimal
import fractions
import functools
import operator
import pathlib
import uuid

import numpy
import torch

import diff_classes
from diff_case import seeded
from diff_saves import CONTAINERS, load
from diff_tensors import layouts, savable

COUNT = 220
DEPTH = 6
TEXTS = (
    "weight",
    "a.b",
    "with space",
    "",
    "ünïcödé",
    "日本語",
    "🧠",
    "tab\tnewline\n",
    "'\"\\",
    "0",
    "\x00",
    "\u2028",
    "x" * 300,
)
INTS = (
    0,
    -1,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    -(2**31),
    2**31,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
    -(2**200),
    10**100,
)
FLOATS = (0.0, -0.0, 1.5, -2.25, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 3.141592653589793)


def write(cases):
    """Many objects, each in both containers."""
    for container, new in CONTAINERS.items():
        cases.group = "random objects, " + container
        for seed in range(COUNT):
            protocol = (2, 2, 3, 4, 5, 1)[seed % 6]
            obj = Maker(seed, protocol, new).top()
            path = cases.path("random %03d p%d.pth" % (seed, protocol))
            torch.save(obj, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
            cases.add_object(path.stem, path, load(path), protocol)
    cases.group = "objects without tensors, pickle protocol 0"
    for seed in range(10):
        path = cases.path("plain %03d.pth" % seed)
        torch.save(Maker(seed, 0, True, tensors=False).top(), path, pickle_protocol=0)
        cases.add_object(path.stem, path, load(path), 0)


class Maker:
    """Makes one object from a seed."""

    def __init__(self, seed, protocol, new, tensors=True):
        self.random = seeded("object", seed, protocol)
        self.protocol = protocol
        self.made = []
        self.tensors = []
        if tensors:
            dtypes = self.random.sample(savable(new), 2)
            self.tensors = [t for dtype in dtypes for t in layouts(dtype, seed).values()]
            self.tensors.append(torch.nn.Parameter(torch.arange(3.0)))
            self.tensors.append(torch.nn.Parameter(torch.arange(3.0)).requires_grad_(False))

    def top(self):
        """The whole object: more often than not a dictionary with a state dict in it."""
        obj = {
            "head": self.value(0),
            "state": self.state_dict(),
            7: self.value(0),
            "tail": [self.value(0) for _ in range(3)],
        }
        return obj if self.random.random() < 0.8 else [obj, self.value(0)]

    def state_dict(self):
        """A state dict as modules make it."""
        state = collections.OrderedDict((self.text() + str(i), self.tensor()) for i in range(self.random.randrange(5)))
        if self.random.random() < 0.5:
            state._metadata = collections.OrderedDict({"": {"version": 1}})
        return state

    def text(self):
        """A key or a text."""
        return self.random.choice(TEXTS)

    def tensor(self):
        """A tensor, often one that is elsewhere, too."""
        return self.random.choice(self.tensors) if self.tensors else None

    def leaf(self):
        """Something that holds nothing."""
        r = self.random
        choices = (
            lambda: None,
            lambda: r.choice((True, False)),
            lambda: r.choice(INTS),
            lambda: r.getrandbits(r.choice((7, 31, 63, 64, 500, 2100))),
            lambda: -r.getrandbits(r.choice((7, 31, 63, 64, 500, 2100))),
            lambda: r.choice(FLOATS),
            self.text,
            lambda: r.choice((b"", b"bytes", bytes(range(256)), bytearray(b"array"), bytearray())),
            lambda: complex(1, -2),
            lambda: numpy.float32(1.5),
            lambda: numpy.int64(-3),
            lambda: numpy.bool_(True),
            lambda: numpy.arange(r.randrange(6)).astype(r.choice(("f4", ">i2", "u1", "c16", "M8[s]"))),
            lambda: numpy.array(["text", "länger"]),
            lambda: datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
            lambda: decimal.Decimal("1.25"),
            lambda: fractions.Fraction(1, 3),
            lambda: uuid.UUID(int=5),
            lambda: pathlib.PurePosixPath("a/b"),
            lambda: diff_classes.Colour.RED,
            lambda: r.choice((torch.float32, torch.Size([1, 2]), torch.device("cpu"), torch.strided)),
            lambda: r.choice((len, operator.add, diff_classes.Plain, torch.nn.Linear, functools.reduce)),
            lambda: range(1, 9, 2),
            lambda: slice(1, None, 2),
            lambda: diff_classes.Key("k", 1),
        )
        return r.choice(choices)()

    def key(self):
        """A dictionary key."""
        r = self.random
        simple = (
            self.text,
            self.text,
            lambda: r.choice(INTS),
            lambda: r.randrange(9),
            lambda: r.choice((0.5, -1.25, 100.0)),
        )
        odd = (
            lambda: None,
            lambda: True,
            lambda: b"bytes",
            lambda: (1, "a", (2, 3)),
            lambda: tuple(range(10)),
            lambda: diff_classes.Key("key", r.randrange(9)),
            lambda: diff_classes.Colour.BLUE,
            lambda: frozenset((1,)),
            lambda: numpy.int64(r.randrange(9)),
            lambda: len,
        )
        return r.choice(simple if r.random() < 0.8 else odd)()

    def value(self, depth):
        """Anything; perhaps what was made before, or what is being made."""
        r = self.random
        if self.made and r.random() < 0.1:
            return r.choice(self.made)
        if depth >= DEPTH or r.random() < 0.25:
            return self.leaf()
        if self.tensors and r.random() < 0.3:
            return self.tensor()
        made = r.choice((self.mutable, self.mutable, self.fixed))(depth)
        self.made.append(made)
        return made

    def some(self, depth):
        """A few values."""
        return [self.value(depth + 1) for _ in range(self.random.randrange(4))]

    def pairs(self, depth):
        """A few entries."""
        return {self.key(): self.value(depth + 1) for _ in range(self.random.randrange(4))}

    def named(self, depth):
        """A few attributes."""
        return {"a%d" % i: self.value(depth + 1) for i in range(self.random.randrange(3))}

    def mutable(self, depth):
        """A container that may come to contain itself."""
        r = self.random
        which = r.randrange(9)
        if which < 3:
            made = r.choice((dict, collections.OrderedDict, lambda: collections.defaultdict(list)))()
            self.made.append(made)
            made.update(self.pairs(depth))
        elif which < 6:
            made = r.choice((list, collections.deque))()
            self.made.append(made)
            made.extend(self.some(depth))
        else:
            made = r.choice((diff_classes.Plain, argparse.Namespace, diff_classes.Config))()
            self.made.append(made)
            made.__dict__.update(self.named(depth))
        return made

    def fixed(self, depth):
        """What is made at once, of what is there."""
        r = self.random
        choices = [
            lambda: tuple(self.some(depth)),
            lambda: diff_classes.Point(self.value(depth + 1), self.value(depth + 1)),
            lambda: {r.choice((1, "one", (1, 2)))},
            lambda: frozenset(("a",)),
            lambda: {self.tensor()} if self.tensors else set(),
            lambda: collections.Counter({self.text(): 3}),
            lambda: diff_classes.DictConfig({"a": self.leaf(), "b": {"c": self.leaf()}}),
            lambda: functools.partial(max, self.value(depth + 1), key=self.tensor()),
            lambda: diff_classes.State(tuple(self.some(depth)) or 1),
            lambda: diff_classes.Reduced(*self.some(depth)),
            self.object_array,
        ]
        if self.protocol >= 2:
            choices += [
                lambda: diff_classes.Slots(self.value(depth + 1), self.value(depth + 1)),
                lambda: diff_classes.Arguments(*self.some(depth)),
                lambda: with_attributes(diff_classes.Items(self.some(depth)), self.named(depth)),
                lambda: with_attributes(diff_classes.Table(self.pairs(depth)), self.named(depth)),
            ]
        return r.choice(choices)()

    def object_array(self):
        """A NumPy array of objects."""
        made = numpy.empty(3, dtype=object)
        made[0], made[1] = self.tensor(), self.leaf()
        return made


def with_attributes(obj, attributes):
    """`obj` with attributes set."""
    obj.__dict__.update(attributes)
    return obj
