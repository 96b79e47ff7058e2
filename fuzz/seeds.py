"""Writes the seeds of the fuzz targets to fuzz/corpus/TARGET/seed-NAME; what the fuzzers found themselves has other names.

Needs the packages of fixtures/generate/requirements.txt; run it from anywhere. The files are made by PyTorch,
NumPy, safetensors and Python's own pickle and tarfile; the formats that the current PyTorch no longer writes are put
together here and read back with torch.load. A file that targets take apart (fuzz/targets/build.rs) is also written in
that form, so that the fuzzer can change its parts.

Storages of legacy streams are named by their addresses and sorted by that, so that their order differs from run to run.
"""

import argparse
import array
import collections
import io
import json
import os
import pathlib
import pickle
import re
import struct
import tarfile
import tempfile
import types
import warnings
import zipfile

import numpy
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

# PyTorch would rather not write some of these formats any more.
warnings.simplefilter("ignore")
torch.manual_seed(0)
corpus = pathlib.Path(__file__).resolve().parent / "corpus"


def without_addresses(data):
    """The names of storages in legacy streams are addresses: numbers them instead, at the same length."""
    names = {}
    digits = lambda match: names.setdefault(match[0], b"%0*d" % (len(match[0]), len(names) + 1))
    return re.sub(rb"(?<![0-9])[0-9]{12,16}(?![0-9])", digits, data)


def put(target, name, data):
    folder = corpus / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(data)


def saved(obj, **options):
    out = io.BytesIO()
    torch.save(obj, out, **options)
    return without_addresses(out.getvalue())


# Objects -----------------------------------------------------------------------------------------------------------

base = torch.arange(12, dtype=torch.float32)
Point = collections.namedtuple("Point", "x y")
model = torch.nn.Sequential(
    collections.OrderedDict(fc=torch.nn.Linear(3, 2), norm=torch.nn.BatchNorm1d(2), act=torch.nn.ReLU())
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
model(torch.ones(4, 3)).sum().backward()
optimizer.step()

objects = {
    "state": model.state_dict(),
    "training": {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3, name="tiny", flags=[True, None, (1, 2)]),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "best": numpy.float64(0.5),
    },
    "views": {
        "whole": base,
        "part": base[2:7],
        "across": base.view(3, 4).t(),
        "steps": base[::3],
        "expanded": base[:1].expand(5),
        "empty": base[:0],
        "scalar": torch.tensor(1.5),
    },
    "dtypes": {
        str(dtype)[6:]: torch.zeros(3).to(dtype)
        for dtype in [
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
            torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16,
        ]
    },
    "parameter": {"weight": torch.nn.Parameter(torch.ones(2)), "buffer": torch.nn.Buffer(torch.ones(1))},
    "sparse": {
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(4), 0.5, 1, torch.qint8),
        "meta": torch.empty(3, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    },
    "module": model,
    "numpy": {"array": numpy.arange(6.0).reshape(2, 3), "scalar": numpy.int32(7), "text": numpy.array(["a", "bc"])},
    "tensor": torch.ones(2),
    "list": [torch.ones(1), {"a": [torch.zeros(1), "text"]}],
    "scaled": {"a": torch.ones(2).conj(), "b": torch.ones(2, dtype=torch.complex64).conj()},
    "ema": {"model_ema": {"w": torch.ones(1)}, "model": {"w": torch.ones(1)}},
    "empty": {},
}

# Pickles -----------------------------------------------------------------------------------------------------------

shared = ["shared"]
cyclic = [1]
cyclic.append(cyclic)
plain = {
    "none": None,
    "ints": [0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**63, 2**200, -(2**200)],
    "floats": [0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan"), 1e-320],
    "texts": ["", "ascii", "\u00e4\u20ac\U0001f600", "line\nfeed", "\\u0041", "\udc80"],
    "bytes": [b"", b"\x00\xff", bytearray(b"array")],
    "sets": [set(), {1}, frozenset(), frozenset([2])],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": {"c": [[[()]]]}}},
    "shared": [shared, shared],
    "cyclic": cyclic,
    7: True,
    (1, "key"): False,
    None: "None",
}
calls = {
    "point": complex(1, 2),
    "namespace": argparse.Namespace(a=1),
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2], 5),
    "range": range(3),
    "path": pathlib.PurePosixPath("a/b"),
    "array": array.array("i", [1, 2]),
    "simple": types.SimpleNamespace(a=1),
    "function": len,
    "class": collections.OrderedDict,
}
for protocol in range(6):
    put("pickle", f"plain-{protocol}", pickle.dumps(plain, protocol))
    put("pickle", f"calls-{protocol}", pickle.dumps(calls, protocol))
    module = pickle.dumps({"module": torch.nn.Linear(1, 1), "n": numpy.float32(1)}, protocol)
    put("pickle", f"module-{protocol}", without_addresses(module))
put("pickle", "text-2", pickle.dumps(["a" * 300, "b" * 20, b"c" * 300], 4))
put("pickle", "buffers-5", pickle.dumps([pickle.PickleBuffer(b"x"), b"y"], 5, buffer_callback=lambda _: None))
put("pickle", "old-instance", b"(i__main__\nC\np0\n(dp1\nS'x'\np2\nI1\nsb.")
put("pickle", "old-object", b"((c__main__\nC\nI1\no(dS'x'\nI1\nsb.")
put("pickle", "old-texts", b"(S'a\\n\\x41\\101\"'\nS\"b\"\nVu\\u00e4\\U0001f600\nT\x02\0\0\0ABU\x03abcP12\nN\x88I01\nI00\nL12L\nF1e3\nt.")
put("pickle", "extensions", b"\x80\x02\x82\x01\x83\x01\x02\x84\x01\x02\x03\x04\x87.")
put("pickle", "stack", b"\x80\x04N(K\x01K\x0210K\x0520]2aN\x94h\x00\x86\x86.")
put("pickle", "long4", b"\x80\x02\x8b\x09\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x00\x86.")
put("pickle", "newobj-ex", pickle.dumps(pathlib.PurePosixPath("a"), 4) + b"rest")
put("pickle", "kwargs", b"\x80\x04c__main__\nC\n)}X\x01\0\0\0kK\x01s\x92.")
# What the fuzzer and Python did not agree about with this product once.
put("pickle", "was-surrogate", pickle.dumps("a\udce9b", 0))
put("pickle", "was-backslashes", b"V\\\\u0041\\\\\\u0041\\\n.")
put("pickle", "was-plus", b"V\\U+001f600\n.")
put("pickle", "was-quoted", b"S'a' \n.")
put("pickle", "was-octal", b"L010L\n.")
put("pickle", "long-lengths", b"\x80\x04\x8d\x02\0\0\0\0\0\0\0ab\x8e\x01\0\0\0\0\0\0\0c\x96\x01\0\0\0\0\0\0\0d\x95\x01\0\0\0\0\0\0\0N\x94\x97\x98(t.")

# Archives ----------------------------------------------------------------------------------------------------------

ZIP_NAMES = [
    "data.pkl", "data/0", "data/1", "data/2", "byteorder", "version", "constants.pkl", "constants/0",
    "code/__torch__.py", ".data/serialization_id", ".data/extern_modules", ".data/0.storage", "m/m.pkl",
]
TAR_NAMES = ["sys_info", "pickle", "tensors", "storages"]


def record(names, name, data, flags):
    if name in names:
        return bytes([names.index(name), flags]) + struct.pack("<H", len(data)) + data
    data = name.encode() + b"\n" + data
    return bytes([255, flags]) + struct.pack("<H", len(data)) + data


def zip_records(file, flags=0):
    """An archive in the form of `build::zip`. Its folder is named `a` there."""
    out = b""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        for info in archive.infolist():
            folder, _, name = info.filename.partition("/")
            known = name in ZIP_NAMES
            out += record(ZIP_NAMES, name if known else f"a/{name}", archive.read(info), flags)
    return out


def scripted():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(2, 1)
            self.table = torch.jit.Attribute({"a": 1}, dict[str, int])
            self.register_buffer("buffer", torch.ones(1))

        def forward(self, x):
            return self.fc(x) + torch.tensor([1.0]) + self.buffer

    out = io.BytesIO()
    torch.jit.save(torch.jit.trace(Net(), torch.ones(1, 2)), out)
    return out.getvalue()


def packaged():
    out = io.BytesIO()
    with torch.package.PackageExporter(out) as exporter:
        exporter.extern("**")
        exporter.save_pickle("m", "m.pkl", {"w": torch.ones(2), "f": collections.OrderedDict(a=1)})
    return out.getvalue()


def deflated(file):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as copy:
        for info in archive.infolist():
            copy.writestr(zipfile.ZipInfo(info.filename), archive.read(info), zipfile.ZIP_DEFLATED)
    return out.getvalue()


for name, obj in objects.items():
    file = saved(obj)
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        put("pickle", f"torch-{name}", archive.read("archive/data.pkl"))
    put("torch_zip", name, zip_records(file))
# The flags of `build::zip`.
DEFLATED, NO_CHECKSUM, ALIGNED, ZIP64, WRONG_CHECKSUM = 1, 2, 4, 8, 16
for flags in [DEFLATED, NO_CHECKSUM, ALIGNED, ZIP64, DEFLATED | ALIGNED | ZIP64, WRONG_CHECKSUM]:
    put("torch_zip", f"views-{flags:02}", zip_records(saved(objects["views"]), flags))
put("torch_zip", "raw", saved(objects["views"]))
put("torch_zip", "raw-deflated", deflated(saved(objects["list"])))
put("torch_zip", "script", zip_records(scripted()))
put("torch_zip", "package", zip_records(packaged()))
big = zip_records(saved(objects["views"])).replace(b"\x04\x00\x06\x00little", b"\x04\x00\x03\x00big")
put("torch_zip", "big", big)

arrays = io.BytesIO()
numpy.savez(arrays, a=numpy.arange(3, dtype="<f4"), b=numpy.ones((2, 2), ">i2"), c=numpy.array(["x"]))
with zipfile.ZipFile(arrays) as archive:
    for name, flags in [("arrays", 0), ("arrays-deflated", DEFLATED)]:
        entries = [record(ZIP_NAMES, entry, archive.read(entry), flags) for entry in archive.namelist()]
        put("torch_zip", name, b"".join(entries))

# Legacy streams ----------------------------------------------------------------------------------------------------

HEAD = saved(None, _use_new_zipfile_serialization=False)
HEAD = HEAD[: len(HEAD) - len(pickle.dumps(None, 2)) - len(pickle.dumps([], 2))]
for name, obj in objects.items():
    if name == "sparse":
        obj = {key: obj[key] for key in ("coo", "quantized")}
    file = saved(obj, _use_new_zipfile_serialization=False)
    assert file.startswith(HEAD)
    put("legacy", name, b"\x00" + file[len(HEAD) :])
put("legacy", "raw", saved(objects["views"], _use_new_zipfile_serialization=False))
for protocol in [3, 4]:
    file = saved(objects["views"], _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    put("legacy", f"raw-{protocol}", file)


def legacy_with_views():
    """As PyTorch wrote storages that are views of other storages, before 0.4."""
    ids = []

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Storage) else None

    class Storage:
        def __init__(self, *id):
            self.id = id

    def tensor(storage, offset, size, stride):
        return Call(torch._utils._rebuild_tensor, (storage, offset, size, stride))

    class Call:
        def __init__(self, function, args):
            self.function, self.args = function, args

        def __reduce__(self):
            return self.function, self.args

    root = lambda view: Storage("storage", torch.FloatStorage, "10", "cpu", 6, view)
    out = io.BytesIO()
    obj = {
        "whole": tensor(root(None), 0, (6,), (1,)),
        "view": tensor(root(("20", 2, 3)), 0, (3,), (1,)),
    }
    Pickler(out, 2).dump(obj)
    keys = pickle.dumps(["10"], 2)
    data = struct.pack("<q", 6) + struct.pack("<6f", *range(6))
    file = HEAD + out.getvalue() + keys + data
    read = torch.load(io.BytesIO(file), weights_only=False)
    assert read["view"].tolist() == [2, 3, 4], read
    return b"\x00" + file[len(HEAD) :]


put("legacy", "storage-views", legacy_with_views())

# Tar archives ------------------------------------------------------------------------------------------------------


def tar_members():
    """The members of a file of PyTorch 0.1: two tensors of one storage, and one of a view of it."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return str(obj.key) if isinstance(obj, Tensor) else None

    class Tensor:
        def __init__(self, key):
            self.key = key

    out = io.BytesIO()
    Pickler(out, 2).dump(collections.OrderedDict(a=Tensor(30), b=Tensor(31), c=Tensor(32), n=3))
    dumps = lambda obj: pickle.dumps(obj, 2)
    storages = dumps(2)
    storages += dumps((10, "cpu", torch.FloatStorage)) + struct.pack("<q", 6) + struct.pack("<6f", *range(6))
    storages += dumps((11, "cpu", torch.LongStorage)) + struct.pack("<q", 2) + struct.pack("<2q", 7, 8)
    storages += dumps([(12, 10, 2, 3)])
    tensor = lambda key, storage, kind, offset, size, stride: (
        dumps((key, storage, kind)) + struct.pack("<ii", len(size), 0)
        + struct.pack(f"<{len(size)}q", *size) + struct.pack(f"<{len(size)}q", *stride) + struct.pack("<q", offset)
    )
    tensors = dumps(3)
    tensors += tensor(30, 10, torch.FloatTensor, 0, (3, 2), (1, 3))
    tensors += tensor(31, 11, torch.LongTensor, 1, (1,), (1,))
    tensors += tensor(32, 12, torch.FloatTensor, 1, (2,), (1,))
    info = dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}})
    return {"sys_info": info, "pickle": out.getvalue(), "tensors": tensors, "storages": storages}


def tarred(members, format):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if format == tarfile.PAX_FORMAT:
                info.mtime = 0.5
            archive.addfile(info, io.BytesIO(data))
    file = out.getvalue()
    # Without the zeros that fill up the last of Python's blocks of 20.
    return file[: len(file.rstrip(b"\0")) // 512 * 512 + 512 + 1024]


members = tar_members()
for name, format in [("ustar", tarfile.USTAR_FORMAT), ("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)]:
    file = tarred(members, format)
    with tempfile.NamedTemporaryFile() as temporary:
        # Only real files are looked at for this format.
        pathlib.Path(temporary.name).write_bytes(file)
        read = torch.load(temporary.name, weights_only=False)
    assert read["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and read["b"].tolist() == [8] and read["c"].tolist() == [3, 4]
    put("tar", f"raw-{name}", file)
put("tar", "members", b"".join(record(TAR_NAMES, name, data, 0) for name, data in members.items()))
reversed_members = list(members.items())[::-1]
put("tar", "reversed", b"".join(record(TAR_NAMES, name, data, 0) for name, data in reversed_members))
put("tar", "other", b"".join(record(TAR_NAMES, name, b"x", 0) for name in ["readme.txt", "a/b"]))

# What a scan is for --------------------------------------------------------------------------------------------------


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


for protocol in range(6):
    put("scan", f"system-{protocol}", pickle.dumps({"weights": [1.0], "run": Runs(os.system, "true")}, protocol))
put("scan", "eval", pickle.dumps(Runs(eval, "1"), 4))
put("scan", "indirect", pickle.dumps(Runs(getattr, Runs(__import__, "os"), "system"), 2))
put("scan", "instance", b"(S'true'\nios\nsystem\n.")
put("scan", "object", b"(cos\nsystem\nS'true'\no.")
put("scan", "memo", b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\0h\x01\x93\x8c\x04true\x85R.")
put("scan", "popped", b"\x80\x02cos\nsystem\n0N.")
put("scan", "broken", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R\xff")
put("scan", "two", pickle.dumps(1, 2) + pickle.dumps(Runs(os.system, "true"), 2))
put("scan", "extension", b"\x80\x02\x82\x01)R.")
put("scan", "build", b"\x80\x02cos\nenviron\n}X\x01\0\0\0aK\x01sb.")
# What was clean once.
CALL = b"(S'true'\ntR"
NOTHING = b"N0" * 2100
put("scan", "was-names", b"cos\nsystem\n" + CALL + b"0c!!\n!!\n.")
put("scan", "was-stack-names", b"\x8c\x02os\x8c\x06system\x93" + CALL + b"0c!!\n!!\n.")
put("scan", "was-instance", b"(S'true'\nios\nsystem\n0c!!\n!!\n.")
put("scan", "was-any-name", b"ctorch.ops\n!!\n0cos\nsystem\n" + CALL + b".")
put("scan", "was-patience", b"\x8c\x02os\x940\x8c\x06system\x940" + NOTHING + b"h\0h\x01\x93" + CALL + b".")
put("scan", "state", pickle.dumps(objects["state"]["fc.weight"].tolist(), 2))
put("scan", "archive", b"\xff" + zip_records(saved(objects["training"])))
hidden = record(ZIP_NAMES, "data.pkl", pickle.dumps({}, 2), 0)
hidden += record(ZIP_NAMES, "data/0", pickle.dumps(Runs(os.system, "true"), 2), 0)
put("scan", "hidden", b"\xff" + hidden)
put("scan", "legacy", HEAD + pickle.dumps(Runs(os.system, "true"), 2) + pickle.dumps([], 2))
put("scan", "tar", tarred(members, tarfile.USTAR_FORMAT))
nested = io.BytesIO()
with zipfile.ZipFile(nested, "w") as archive:
    archive.writestr("inner.zip", deflated(saved(objects["list"])))
put("scan", "nested", nested.getvalue())

# safetensors -------------------------------------------------------------------------------------------------------

for name in ["state", "dtypes"]:
    tensors = {key: value.clone() for key, value in objects[name].items()}
    file = safetensors.torch.save(tensors, {"format": "pt"})
    length = struct.unpack("<Q", file[:8])[0]
    put("safetensors", f"raw-{name}", file)
    put("safetensors", name, file[8 : 8 + length] + b"\0" + file[8 + length :])
info = lambda dtype, shape, begin, end: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
headers = {
    "none": {},
    "metadata": {"__metadata__": {"a": "b", "c": "\u00e4"}},
    "empty": {"a": info("F32", [0, 3], 0, 0), "b": info("U8", [], 0, 1)},
    "order": {"b": info("F16", [1, 2], 4, 8), "a": info("F32", [1], 0, 4)},
    "gap": {"a": info("U8", [1], 1, 2)},
    "overlap": {"a": info("U8", [2], 0, 2), "b": info("U8", [2], 1, 3)},
    "huge": {"a": info("F32", [2**32, 2**32], 0, 0), "b": info("F64", [2**63], 0, 2**64 - 1)},
    "small-types": {"a": info("F4", [2], 0, 1), "b": info("F6_E2M3", [4], 1, 4), "c": info("E8M0", [1], 4, 5)},
    "extra": {"a": info("U8", [1], 0, 1) | {"more": 1}},
}
for name, header in headers.items():
    put("safetensors", f"header-{name}", json.dumps(header, separators=(",", ":")).encode() + b"\0" + bytes(8))
text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
put("safetensors", "header-twice", text + b"\0" + bytes(2))

# Indexes of shards -------------------------------------------------------------------------------------------------

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
good = {"a": FIRST, "b": FIRST, "c": SECOND}
indexes = {
    "good": {"metadata": {"total_size": 15}, "weight_map": good},
    "bare": {"weight_map": good},
    "one": {"weight_map": {"c": SECOND}},
    "lost": {"weight_map": good | {"d": FIRST}},
    "swapped": {"weight_map": good | {"a": SECOND}},
    "missing": {"weight_map": good | {"d": "model-00003-of-00002.safetensors"}},
    "damaged": {"weight_map": good | {"c": "damaged.safetensors"}},
    "outside": {"weight_map": good | {"d": "../outside.safetensors", "e": "/dev/null", "f": "."}},
    "itself": {"weight_map": {"a": "model.safetensors.index.json"}},
    "empty": {"weight_map": {}},
    "none": {},
    "types": {"metadata": [], "weight_map": {"a": 1}},
    "sizes": {"metadata": {"total_size": 1e300, "more": {"a": [None]}}, "weight_map": good},
}
for name, index in indexes.items():
    put("index_json", name, json.dumps(index, indent=1 if name == "good" else None).encode())
put("index_json", "twice", b'{"weight_map":{"a":"%s","a":"%s"}}' % (FIRST.encode(), SECOND.encode()))
put("index_json", "text", b"not json")
put("index_json", "deep", b"[" * 2000)

# Distributed checkpoints ---------------------------------------------------------------------------------------------

DCP_NAMES = [".metadata", "__0_0.distcp", "__1_0.distcp"]


def distributed(folder):
    return b"".join(
        record(DCP_NAMES, path.name, path.read_bytes(), 0) for path in sorted(pathlib.Path(folder).iterdir())
    )


parts = {
    "small": {"w": torch.arange(6.0).reshape(2, 3), "n": 3},
    "nested": {"model": {"a.b": torch.ones(2, dtype=torch.bfloat16)}, "list": [{"step": torch.tensor(1.0)}, (None, "x")]},
}
for name, obj in parts.items():
    with tempfile.TemporaryDirectory() as folder:
        dcp.save(obj, checkpoint_id=folder, no_dist=True)
        put("dcp", name, distributed(folder))


def chunked():
    """A tensor in two parts by two processes, put together of what PyTorch writes for one."""
    w = torch.arange(8.0).reshape(4, 2)
    items = [saved(w[:2].clone()), saved(w[2:].clone())]
    index = lambda row, number: metadata.MetadataIndex("w", torch.Size([row, 0]), number)
    place = lambda file, item: filesystem._StorageInfo(file, 0, len(item))
    chunk = lambda row: metadata.ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([2, 2]))
    whole = metadata.TensorStorageMetadata(metadata.TensorProperties(torch.float32), w.size(), [chunk(0), chunk(2)])
    tree = metadata.Metadata(
        state_dict_metadata={"w": whole},
        planner_data={"w": ("w",)},
        storage_data={index(0, 0): place(DCP_NAMES[1], items[0]), index(2, 1): place(DCP_NAMES[2], items[1])},
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, data in zip(DCP_NAMES, [pickle.dumps(tree), *items]):
            (pathlib.Path(folder) / name).write_bytes(data)
        read = {"w": torch.zeros(4, 2)}
        dcp.load(read, checkpoint_id=folder, no_dist=True)
        assert read["w"].equal(w)
        return distributed(folder)


put("dcp", "chunked", chunked())

# NumPy -------------------------------------------------------------------------------------------------------------

arrays = {
    "f4": numpy.arange(6, dtype="<f4").reshape(2, 3),
    "big": numpy.arange(3, dtype=">i8"),
    "fortran": numpy.asfortranarray(numpy.arange(6.0).reshape(2, 3)),
    "scalar": numpy.array(1.5),
    "empty": numpy.zeros((0, 3), "i2"),
    "bool": numpy.array([True]),
    "complex": numpy.array([1j], "c8"),
    "text": numpy.array(["ab"]),
    "record": numpy.zeros(1, [("a", "f4"), ("b", "i8", (2,))]),
    "date": numpy.array(["2020-01-01"], "M8[D]"),
    "objects": numpy.array([None], object),
}
for name, array in arrays.items():
    out = io.BytesIO()
    numpy.save(out, array)
    file = out.getvalue()
    if name in ("f4", "objects"):
        put("npy", f"raw-{name}", file)
    length = struct.unpack("<H", file[8:10])[0]
    put("npy", name, file[10 : 10 + length].rstrip() + b"\n\0" + file[10 + length :])
for version in [(2, 0), (3, 0)]:
    out = io.BytesIO()
    numpy.lib.format.write_array(out, arrays["f4"], version)
    put("npy", f"raw-version-{version[0]}", out.getvalue())
