"""Writes fuzz/expected/pickle.json: what Python's own unpickler makes of every file in fuzz/corpus/pickle.

With a folder as argument, prints the same of its files instead. The stack machine is that of `pickle._Unpickler`;
only what would import, call or hash something is replaced, by records of what would be done. Each file's value is written
as one line of text in the form of `dump` in tests/it/fuzzed.rs; files that Python refuses get null.
"""

import io
import json
import pathlib
import pickle
import struct
import sys

here = pathlib.Path(__file__).resolve().parent


class Record:
    """A value that Python would have made, as the name of its kind and its parts."""

    def __init__(self, kind, *parts):
        self.kind, self.parts = kind, list(parts)


def made(callable, args, kwargs=None):
    return Record("object", callable, args, kwargs, Record("list"), Record("list"), Record("list"))


class Unpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module, name):
        return Record("global", module, name)

    def get_extension(self, code):
        self.append(Record("extension", code))

    def persistent_load(self, id):
        return Record("persistent", id)

    def _decode_string(self, value):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value


def on(opcode):
    def register(function):
        Unpickler.dispatch[opcode[0]] = function
        return function

    return register


@on(pickle.FRAME)
def _(self):
    # The frame is a hint for reading ahead; the C unpickler does not hold the opcodes to it.
    if len(self.read(8)) < 8:
        raise EOFError


for opcode, kind in [(pickle.EMPTY_LIST, "list"), (pickle.EMPTY_DICT, "dict"), (pickle.EMPTY_SET, "set")]:
    on(opcode)(lambda self, kind=kind: self.append(Record(kind)))


def push(self, kind, items):
    # `pop_mark` changes what `append` appends to.
    self.append(Record(kind, *items))


for opcode, kind in [(pickle.LIST, "list"), (pickle.FROZENSET, "frozenset")]:
    on(opcode)(lambda self, kind=kind: push(self, kind, self.pop_mark()))


def paired(items):
    if len(items) % 2:
        raise IndexError
    return items


@on(pickle.DICT)
def _(self):
    push(self, "dict", paired(self.pop_mark()))


def add(self, items, kind):
    target = self.stack[-1]
    assert isinstance(target, Record)
    if target.kind == "object":
        target.parts[4].parts.extend(items)
    elif target.kind == kind:
        target.parts.extend(items)
    else:
        raise pickle.UnpicklingError


@on(pickle.APPEND)
def _(self):
    item = self.stack.pop()
    add(self, [item], "list")


@on(pickle.APPENDS)
def _(self):
    add(self, self.pop_mark(), "list")


@on(pickle.ADDITEMS)
def _(self):
    add(self, self.pop_mark(), "set")


def set_items(self, items):
    target = self.stack[-1]
    assert isinstance(target, Record)
    if target.kind == "object":
        target.parts[5].parts.extend(paired(items))
    elif target.kind == "dict":
        target.parts.extend(paired(items))
    else:
        raise pickle.UnpicklingError


@on(pickle.SETITEM)
def _(self):
    value = self.stack.pop()
    key = self.stack.pop()
    set_items(self, [key, value])


@on(pickle.SETITEMS)
def _(self):
    set_items(self, self.pop_mark())


@on(pickle.BUILD)
def _(self):
    state = self.stack.pop()
    target = self.stack[-1]
    if not (isinstance(target, Record) and target.kind == "object"):
        raise pickle.UnpicklingError
    target.parts[3].parts.append(state)


@on(pickle.REDUCE)
@on(pickle.NEWOBJ)
def _(self):
    args = self.stack.pop()
    self.append(made(self.stack.pop(), args))


@on(pickle.NEWOBJ_EX)
def _(self):
    kwargs = self.stack.pop()
    args = self.stack.pop()
    self.append(made(self.stack.pop(), args, kwargs))


@on(pickle.INST)
def _(self):
    module, name = self.readline()[:-1].decode(), self.readline()[:-1].decode()
    args = tuple(self.pop_mark())
    self.append(made(self.find_class(module, name), args))


@on(pickle.OBJ)
def _(self):
    callable, *args = self.pop_mark()
    self.append(made(callable, tuple(args)))


@on(pickle.NEXT_BUFFER)
def _(self):
    self.buffers = getattr(self, "buffers", -1) + 1
    self.append(Record("buffer", self.buffers))


@on(pickle.READONLY_BUFFER)
def _(self):
    self.stack[-1]


def dump(value, room):
    """The value as text, in bounds: `room` holds the number of values left."""
    if room[0] == 0:
        return "~"
    room[0] -= 1
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        length = (value + (value < 0)).bit_length() // 8 + 1
        return f"i{value.to_bytes(length, 'little', signed=True).hex()}"
    if isinstance(value, float):
        return f"f{struct.pack('>d', value).hex()}"
    if isinstance(value, str):
        # Lone surrogates as this product shows them.
        text = "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) < 0xE000 else c for c in value)
        return f"s{text.encode().hex()}"
    if isinstance(value, bytes):
        return f"b{value.hex()}"
    if isinstance(value, bytearray):
        return f"a{value.hex()}"
    kind, parts = ("tuple", value) if isinstance(value, tuple) else (value.kind, value.parts)
    return f"{kind}({','.join([dump(part, room) for part in parts])})"


def read(data):
    try:
        value = Unpickler(io.BytesIO(data)).load()
        return dump(value, [500])
    except RecursionError:
        raise
    except Exception:
        return None


sys.setrecursionlimit(10_000)
folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "corpus/pickle"
text = json.dumps({path.name: read(path.read_bytes()) for path in sorted(folder.iterdir())}, indent=0)
if len(sys.argv) > 1:
    print(text)
else:
    (here / "expected").mkdir(exist_ok=True)
    (here / "expected/pickle.json").write_text(text + "\n")
