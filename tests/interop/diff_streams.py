"""What PyTorch no longer writes but still reads: legacy streams of its first years, tar archives of before 0.1.10."""

import collections
import io
import itertools
import pickle
import tarfile

import torch

from diff_expect import content
from diff_saves import load
from diff_tensors import layouts, savable, short, values

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Storage:
    """A storage, or a part of one: what the pickle refers to."""

    def __init__(self, row, location="cpu", start=0, count=None):
        self.row, self.location, self.start = row, location, start
        self.count = len(row) if count is None else count
        self.whole = start == 0 and self.count == len(row)

    @property
    def kind(self):
        """Its class, `torch.FloatStorage` and the like."""
        return getattr(torch, torch.storage._dtype_to_storage_type_map()[self.row.dtype])


class Stored:
    """A tensor by its storage, pickled as PyTorch 0.1.10 to 0.3 did: `_rebuild_tensor`, no gradient, no hooks."""

    def __init__(self, storage, offset, size, stride):
        self.fields = storage, offset, tuple(size), tuple(stride)

    def __reduce__(self):
        return torch._utils._rebuild_tensor, self.fields

    def meant(self):
        """The tensor."""
        storage, offset, size, stride = self.fields
        return storage.row[storage.start :][: storage.count].as_strided(size, stride, storage.start + offset)


class Python2(pickle._Pickler):
    """Writes texts as Python 2 did, as byte strings."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, text):
        """SHORT_BINSTRING or BINSTRING."""
        data = text.encode()
        short_ = len(data) < 256
        self.write((b"U" + bytes([len(data)]) if short_ else b"T" + len(data).to_bytes(4, "little")) + data)
        self.memoize(text)

    dispatch[str] = save_str


def stored(tensor, roots, location="cpu"):
    """A tensor as a `Stored`; tensors of one storage share it."""
    key = tensor.untyped_storage().data_ptr() or id(tensor)
    if key not in roots:
        roots[key] = Storage(torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()), location)
    return Stored(roots[key], tensor.storage_offset(), tensor.shape, tensor.stride())


def old_objects():
    """(what, object) with `Stored` for tensors."""
    for dtype in savable(False):
        roots = {}
        made = layouts(dtype, 41)
        yield short(dtype), collections.OrderedDict((k, stored(t, roots)) for k, t in made.items())
    row = values(torch.float32, 30, 42)
    first, second = Storage(row, start=0, count=10), Storage(row, start=10, count=15)
    again = Storage(row, start=5, count=8)
    yield (
        "views of storages",
        {
            "whole": Stored(Storage(row), 0, (5, 6), (6, 1)),
            "first": Stored(first, 1, (3, 3), (3, 1)),
            "second": Stored(second, 0, (3, 5), (1, 3)),
            "second again": Stored(second, 4, (2,), (1,)),
            "overlapping": Stored(again, 0, (8,), (1,)),
        },
    )
    yield (
        "views, and never the whole",
        {
            "b": Stored(Storage(row, start=12, count=6), 0, (2, 3), (3, 1)),
            "a": Stored(Storage(row, start=3, count=6), 2, (4,), (1,)),
        },
    )
    for location in ("cuda:3", "cuda:0", "mps"):
        roots = {}
        yield "on " + location, {k: stored(t, roots, location) for k, t in layouts(torch.float32, 43).items()}
    yield "no tensor", {"a": 1}


def write(cases):
    """Streams and archives by hand."""
    for what, pickler in (("Python 3", pickle._Pickler), ("Python 2", Python2)):
        for container, writer in (("legacy stream", stream), ("tar", tar)):
            cases.group = "%s by hand, %s pickles" % (container, what)
            for name, obj in old_objects():
                path = cases.path(name + (".pth" if container != "tar" else ".pth.tar"))
                path.write_bytes(writer(obj, pickler))
                loaded = load(path)
                cases.add_object(name, path, loaded)
                for key, tensor in obj.items():
                    if isinstance(tensor, Stored) and content(loaded[key]) != content(tensor.meant()):
                        cases.broken(name, ValueError("PyTorch does not read %s as it was meant" % key))


def dumped(obj, pickler, persistent=lambda obj: None):
    """A pickle with that persistent id."""
    file = io.BytesIO()
    writer = pickler(file, 2)
    writer.persistent_id = persistent
    writer.dump(obj)
    return file.getvalue()


def raw(row):
    """A storage in the file: the number of its elements, and they."""
    return len(row).to_bytes(8, "little") + content(row)


def stream(obj, pickler):
    """As torch.save wrote from 0.1.10 on."""
    head, rows = stream_parts(obj, pickler)
    return head + b"".join(raw(row) for row in rows)


def stream_parts(obj, pickler):
    """The pickles of a stream, and the storages that follow. `view_metadata` tells which part of one a view is."""
    roots = {}
    views = itertools.count(7000)

    def persistent(value):
        if not isinstance(value, Storage):
            return None
        root = roots.setdefault(id(value.row), (str(100 + len(roots)), value.row))[0]
        if not hasattr(value, "key"):
            value.key = str(next(views))
        view = None if value.whole else (value.key, value.start, value.count)
        return ("storage", value.kind, root, value.location, len(value.row), view)

    body = dumped(obj, pickler, persistent)
    # The order in which storages follow is that of their keys.
    order = sorted(roots.values(), key=lambda root: root[0])
    head = b"".join(dumped(value, pickler) for value in (MAGIC, 1001, SYSTEM))
    return head + body + dumped([key for key, _ in order], pickler), [row for _, row in order]


def tar(obj, pickler):
    """As torch.save wrote before 0.1.10: `sys_info`, `pickle`, `tensors` and `storages` in a tar archive."""
    tensors, storages = {}, {}

    def persistent(value):
        if not isinstance(value, Stored):
            return None
        if id(value) not in tensors:
            tensors[id(value)] = (1000 + len(tensors), value)
        return str(tensors[id(value)][0])

    body = dumped(obj, pickler, persistent)
    roots, views = {}, []
    for _, tensor in tensors.values():
        storage = tensor.fields[0]
        root = roots.setdefault(id(storage.row), (1 + len(roots), storage))[0]
        if storage.whole:
            storages[id(storage)] = root
        elif id(storage) not in storages:
            storages[id(storage)] = 500 + len(views)
            views.append((500 + len(views), root, storage.start, storage.count))
    listed = [dumped(len(tensors), pickler)]
    for key, tensor in tensors.values():
        storage, offset, size, stride = tensor.fields
        kind = getattr(torch, storage.kind.__name__.replace("Storage", "Tensor"), torch.FloatTensor)
        listed.append(dumped((key, storages[id(storage)], kind), pickler))
        numbers = (*size, *stride, offset)
        listed.append(len(size).to_bytes(4, "little") + bytes(4))
        listed += [number.to_bytes(8, "little", signed=True) for number in numbers]
    kept = [dumped(len(roots), pickler)]
    for key, storage in roots.values():
        kept += [dumped((key, storage.location, storage.kind), pickler), raw(storage.row)]
    kept.append(dumped(views, pickler))
    file = io.BytesIO()
    members = {
        "sys_info": dumped({**SYSTEM, "protocol_version": 1000}, pickler),
        "pickle": body,
        "tensors": b"".join(listed),
        "storages": b"".join(kept),
    }
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()
