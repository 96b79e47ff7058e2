"""Archives that other programs than torch.save put together, or other machines, and that torch.load reads."""

import functools
import io
import struct
import zipfile

import torch

import diff_expect
from diff_saves import load
from diff_tensors import layouts, savable, short

LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def write(cases):
    """Re-zipped in many ways, and big-endian."""
    cases.group = "re-zipped archives"
    source = cases.path("source.pth")
    state = {"state_dict": layouts(torch.float32, 51), "ints": layouts(torch.int64, 52)}
    torch.save(state, source)
    with zipfile.ZipFile(source) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    wanted = load(source)
    for what, make in forms(entries):
        path = cases.path(what + ".pth")
        path.write_bytes(make())
        try:
            found = load(path)
        except Exception as error:
            # What PyTorch cannot read is no business of these tests, but then it must not be listed here.
            cases.broken(what, error)
            continue
        cases.add_object(what, path, found)
        if cases.cases[-1]["tensors"] != diff_expect.listing(wanted)[0]:
            cases.broken(what, ValueError("PyTorch reads something else than was saved"))
    cases.group = "big-endian archives"
    for dtype in savable():
        state = layouts(dtype, 53)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with zipfile.ZipFile(buffer) as archive:
            entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        entries["byteorder"] = b"big"
        for name in [name for name in entries if name.startswith("data/")]:
            entries[name] = swapped(entries[name], state["tied"].element_size() // (2 if dtype.is_complex else 1))
        path = cases.path(short(dtype) + ".pth")
        path.write_bytes(zipped(entries))
        # PyTorch swaps a storage by the type of the storage. The newer types have untyped ones: what a big-endian
        # PyTorch wrote of them only a big-endian PyTorch reads as it was. See docs/second-opinions.md.
        typed = dtype in torch.storage._dtype_to_storage_type_map()
        cases.add_object(short(dtype), path, load(path) if typed else state)
        if cases.cases[-1]["tensors"] != diff_expect.listing(state)[0]:
            cases.broken(short(dtype), ValueError("PyTorch reads something else than was saved"))


def swapped(data, width):
    """Every number of `width` bytes the other way round."""
    return b"".join(data[i : i + width][::-1] for i in range(0, len(data), width))


def forms(entries):
    """(what, function that makes the bytes of the archive)."""
    make = functools.partial(zipped, entries)
    yield "stored, unaligned", make
    yield "deflated", functools.partial(make, compression=zipfile.ZIP_DEFLATED)
    yield "zip64 forced", functools.partial(make, zip64=True)
    yield "zip64 forced, deflated", functools.partial(make, zip64=True, compression=zipfile.ZIP_DEFLATED)
    yield "written to a pipe, data descriptors", functools.partial(make, pipe=True)
    yield "written to a pipe, deflated", functools.partial(make, pipe=True, compression=zipfile.ZIP_DEFLATED)
    yield "written to a pipe, zip64", functools.partial(make, pipe=True, zip64=True)
    for root in ("model", "a name with spaces", "ünïcödé", "archive.pth", "data", "a-very-long-" + "x" * 200):
        yield "root " + root[:20], functools.partial(make, root=root)
    yield "entries in reverse", lambda: zipped(dict(reversed(list(entries.items()))))
    yield "no byteorder", lambda: zipped({k: v for k, v in entries.items() if k != "byteorder"})
    needed = ("data.pkl", "version", "data/")
    yield "nothing that is not needed", lambda: zipped({k: v for k, v in entries.items() if k.startswith(needed)})
    yield (
        "entries nobody asked for",
        lambda: zipped({**entries, "extra/readme.txt": b"text", "data/note": b"x", "data2/0": b""}),
    )
    yield "a comment at the end", functools.partial(make, comment=b"PK\x05\x06 is no end here")
    yield "extra fields", functools.partial(make, extra=struct.pack("<HH4s", 0xCAFE, 4, b"abcd"))
    yield "folder entries", functools.partial(make, folders=True)
    yield "checksums 0", lambda: patched(make(), {LOCAL: 14, CENTRAL: 16}, bytes(4))
    yield "times of 0", lambda: patched(make(), {LOCAL: 10, CENTRAL: 12}, bytes(4))


class Pipe(io.RawIOBase):
    """Takes bytes, and cannot seek."""

    def __init__(self):
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.content += data
        return len(data)


def zipped(
    entries,
    root="archive",
    compression=zipfile.ZIP_STORED,
    zip64=False,
    pipe=False,
    comment=b"",
    extra=b"",
    folders=False,
):
    """The bytes of an archive of these entries."""
    file = Pipe() if pipe else io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        if folders:
            archive.writestr(root + "/", b"")
            archive.writestr(root + "/data/", b"")
        for name, data in entries.items():
            info = zipfile.ZipInfo(root + "/" + name)
            info.compress_type = compression
            info.extra = extra
            with archive.open(info, "w", force_zip64=zip64) as entry:
                entry.write(data)
        archive.comment = comment
    return bytes(file.content) if pipe else file.getvalue()


def patched(data, places, value):
    """The archive with a field of every header overwritten; `places` tells where in which header it is."""
    data = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        at = archive.start_dir
        for info in archive.infolist():
            field = info.header_offset + places[LOCAL]
            data[field : field + 4] = value
    while data[at : at + 4] == CENTRAL:
        data[at + places[CENTRAL] : at + places[CENTRAL] + 4] = value
        name, extra, comment = struct.unpack("<HHH", data[at + 28 : at + 34])
        at += 46 + name + extra + comment
    return bytes(data)
