"""Pickles by hand, opcode by opcode, and zip archives record by record."""

import binascii
import struct
import zlib

PROTO2, PROTO4, STOP = b"\x80\x02", b"\x80\x04", b"."
MARK, POP, DUP, REDUCE, BUILD, OBJ, NEWOBJ, TUPLE = b"(", b"0", b"2", b"R", b"b", b"o", b"\x81", b"t"
EMPTY_TUPLE, EMPTY_DICT, EMPTY_LIST, TUPLE1, TUPLE2, TUPLE3 = b")", b"}", b"]", b"\x85", b"\x86", b"\x87"
NONE, STACK_GLOBAL, MEMOIZE, SETITEM, SETITEMS, APPEND, BINPERSID = b"N", b"\x93", b"\x94", b"s", b"u", b"a", b"Q"

# What every payload does, as a command and as Python: it makes an empty file.
COMMAND = 'touch "$SCAN_MARKER"'
PYTHON = "import os; open(os.environ['SCAN_MARKER'], 'w').close()"
# An expression that does the same.
EXPRESSION = "__import__('os').system('touch \"$SCAN_MARKER\"')"
# The file by its relative name; pickles are loaded in its folder.
MARKER = "scan-marker"


def text(value):
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def short(value):
    """SHORT_BINUNICODE, of protocol 4."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def data(value):
    """BINBYTES, of protocol 3."""
    return b"B" + struct.pack("<I", len(value)) + value


def number(value):
    """BININT."""
    return b"J" + struct.pack("<i", value)


def name(module, attribute):
    """GLOBAL."""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def stack_name(module, attribute):
    """STACK_GLOBAL with its two texts."""
    return short(module) + short(attribute) + STACK_GLOBAL


def items(*parts):
    """A tuple of any length."""
    return MARK + b"".join(parts) + TUPLE


def call(function, *arguments):
    """REDUCE."""
    return function + items(*arguments) + REDUCE


def value(thing):
    """Opcodes of a plain value."""
    if thing is None:
        return NONE
    if isinstance(thing, bool):
        return b"\x88" if thing else b"\x89"
    if isinstance(thing, int):
        return number(thing)
    if isinstance(thing, str):
        return text(thing)
    if isinstance(thing, bytes):
        return data(thing)
    if isinstance(thing, tuple):
        return items(*map(value, thing))
    if isinstance(thing, list):
        return EMPTY_LIST + MARK + b"".join(map(value, thing)) + b"e"
    if isinstance(thing, dict):
        return EMPTY_DICT + MARK + b"".join(value(k) + value(v) for k, v in thing.items()) + SETITEMS
    raise TypeError(thing)


def calls(path, *arguments, proto=b"\x80\x03"):
    """A pickle that calls `module:name` with plain arguments."""
    module, attribute = path.split(":")
    return proto + call(name(module, attribute), *map(value, arguments)) + STOP


SYSTEM = call(name("os", "system"), text(COMMAND))
EVIL = PROTO2 + SYSTEM + STOP
BENIGN = PROTO2 + EMPTY_DICT + STOP


class Entry:
    """An entry of a zip archive whose records can be told to lie."""

    def __init__(self, path, content, method=0, **lies):
        self.path, self.content, self.method, self.lies = path.encode(), content, method, lies
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        self.packed = compressor.compress(content) + compressor.flush() if method == 8 else content

    def record(self, where):
        """The fields that both records have: flags, method, time, date, crc, sizes."""
        lie = lambda key, truth: self.lies.get(f"{where}_{key}", self.lies.get(key, truth))
        return struct.pack(
            "<HHHHIII",
            lie("flags", 0),
            lie("method", self.method),
            0,
            0x21,
            lie("crc", binascii.crc32(self.content)),
            lie("packed", len(self.packed)),
            lie("size", len(self.content)),
        )


def archive(entries, prefix=b"", gap=b"", suffix=b"", comment=b"", hidden=(), **lies):
    """A zip archive. `hidden` entries are in no directory; `gap` lies before the directory."""
    out = bytearray(prefix)
    base = lies.get("base", len(prefix))
    central = b""
    for entry in [*entries, *hidden]:
        header = entry.lies.get("offset", len(out) - len(prefix) + base)
        local = entry.lies.get("local_path", entry.path)
        extra = entry.lies.get("local_extra", b"")
        if "offset" not in entry.lies:
            out += b"PK\x03\x04" + struct.pack("<H", 20) + entry.record("local") + struct.pack("<HH", len(local), len(extra))
            out += local + extra + entry.packed + entry.lies.get("descriptor", b"")
        if entry in hidden:
            continue
        extra = entry.lies.get("central_extra", b"")
        central += b"PK\x01\x02" + struct.pack("<HH", 20, 20) + entry.record("central")
        central += struct.pack(
            "<HHHHHII", len(entry.path), len(extra), 0, entry.lies.get("disk", 0), 0, entry.lies.get("external", 0), header
        ) + entry.path + extra
    out += gap
    start = len(out) - len(prefix) + base
    out += central
    count = lies.get("count", len(entries))
    out += b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, lies.get("directory_size", len(central)), start, len(comment)) + comment
    return bytes(out) + suffix


def checkpoint(pickle=EVIL, root="archive", extra=(), pickle_path=None, **lies):
    """The entries of what torch.save writes."""
    return [
        Entry(pickle_path or f"{root}/data.pkl", pickle, **lies),
        *extra,
        Entry(f"{root}/byteorder", b"little"),
        Entry(f"{root}/version", b"3\n"),
    ]
