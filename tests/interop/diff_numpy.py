"""NumPy's files: .npy and .npz of every type that PyTorch has, too, in every order and version."""

import hashlib
import io
import zipfile

import numpy
from numpy.lib import format as npy

NAMES = {"f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128", "b1": "bool"}
NAMES.update({k + str(n): w + str(8 * n) for k, w in (("i", "int"), ("u", "uint")) for n in (1, 2, 4, 8)})
# What PyTorch has no type for.
STRANGE = ("U5", "S3", "M8[s]", "m8[D]", "V4", "O", "f16", "f4,i2")
JAX = (
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
    "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel",
    "Transformer/encoder_norm/scale",
    "embedding/kernel",
    "cls",
    "opt/target/Transformer/posembed_input/pos_embedding",
)


def write(cases):
    """Arrays alone, arrays in archives."""
    cases.group = "npy"
    for code in NAMES:
        for what, array in arrays(code):
            path = cases.path("%s %s.npy" % (code, what))
            numpy.save(path, array)
            alone(cases, path)
            if array.dtype.itemsize > 1:
                path = cases.path("%s big-endian %s.npy" % (code, what))
                numpy.save(path, array.astype(array.dtype.newbyteorder(">")))
                alone(cases, path)
    for version in ((1, 0), (2, 0), (3, 0)):
        path = cases.path("version %d.npy" % version[0])
        with open(path, "wb") as file:
            npy.write_array(file, numpy.arange(6.0).reshape(2, 3), version)
        alone(cases, path)
    for code in STRANGE:
        path = cases.path("strange %s.npy" % code.replace(",", " and "))
        numpy.save(path, numpy.zeros(3, dtype=code))
        cases.add(code, path, [], [{"name": "array", "kind": "array", "dtype": "", "shape": [3]}])
    cases.group = "npz"
    together = {"%s.%s" % (code, what): array for code in NAMES for what, array in arrays(code)}
    archive(cases, "savez", numpy.savez, together)
    archive(cases, "savez_compressed", numpy.savez_compressed, together)
    archive(cases, "big-endian", numpy.savez, {k: v.astype(v.dtype.newbyteorder(">")) for k, v in together.items()})
    archive(cases, "as ViTs in JAX are saved", numpy.savez, {name: random("f4", (2, 3), name) for name in JAX})
    archive(
        cases,
        "odd names",
        numpy.savez,
        {name: random("f4", (2,), name) for name in ("a.b", "a b", "ünï", "x.npy", "0")},
    )
    archive(cases, "nothing", numpy.savez, {}, may_refuse=True)
    path = cases.path("unnamed.npz")
    numpy.savez(path, numpy.arange(3), numpy.arange(4.0))
    loaded(cases, "unnamed", path)
    path = cases.path("text beside numbers.npz")
    numpy.savez(path, weight=numpy.arange(3.0), names=numpy.array(["a", "bc"]))
    loaded(cases, "text beside numbers", path, [{"name": "names", "kind": "array", "dtype": "", "shape": [2]}])
    path = cases.path("put together by zip.npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("b/weight", "a/weight"):
            buffer = io.BytesIO()
            numpy.save(buffer, random("f4", (3, 4), name).T)
            file.writestr(name + ".npy", buffer.getvalue())
    loaded(cases, "put together by zip", path)


def random(code, shape, *seed):
    """An array of random bits."""
    dtype = numpy.dtype(code)
    count = int(numpy.prod(shape, dtype=int))
    seed = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:4], "little")
    data = numpy.random.RandomState(seed).bytes(count * dtype.itemsize)
    if code == "b1":
        data = bytes(byte & 1 for byte in data)
    return numpy.frombuffer(data, dtype=dtype).reshape(shape)


def arrays(code):
    """(what, array)."""
    yield "matrix", random(code, (3, 4), code, 1)
    yield "Fortran order", numpy.asfortranarray(random(code, (3, 4, 2), code, 2))
    yield "transposed", random(code, (3, 4), code, 3).T
    yield "stepped", random(code, (6, 4), code, 4)[::2, 1:3]
    yield "0-dim", random(code, (), code, 5)
    yield "empty", random(code, (0, 3), code, 6)
    yield "one row", numpy.asfortranarray(random(code, (1, 5), code, 7))


def facts(name, array):
    """What must be listed for an array."""
    little = numpy.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
    kind = NAMES[array.dtype.str[1:]]
    return {"name": name, "dtype": kind, "shape": list(array.shape), "sha256": hashlib.sha256(little).hexdigest()}


def alone(cases, path):
    """A file of one array, which has no name of its own."""
    cases.add(path.stem, path, [facts("", numpy.load(path))], any_name=True)


def archive(cases, what, save, members, **rules):
    """A file of several."""
    path = cases.path(what + ".npz")
    save(path, **members)
    loaded(cases, what, path, **rules)


def loaded(cases, what, path, others=(), **rules):
    """What numpy.load reads."""
    with numpy.load(path) as found:
        members = [(name, found[name]) for name in found.files]
    cases.add(what, path, [facts(name, array) for name, array in members if array.dtype.str[1:] in NAMES], others, **rules)
