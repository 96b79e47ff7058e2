"""Conversions of the container alone: every committed file into both formats, and names, types and values on the way."""

import hashlib
import json
from collections import OrderedDict

import torch
from safetensors import safe_open

from report import equal, expect
from tensors import describe, header, load, same_state
from tool import FIXTURES

DIGITS = FIXTURES / "mnist_vit.pth"


def main(report, tool):
    """Each file, then the options."""
    files = [path.relative_to(FIXTURES) for folder in ("layouts", "torch_files") for path in (FIXTURES / folder).iterdir()]
    files += [path.relative_to(FIXTURES) for path in FIXTURES.glob("*.*") if path.suffix in (".pth", ".safetensors")]
    refused = 0
    for file in sorted(files):
        for suffix in (".pth", ".safetensors"):
            with report.check(f"convert {file} to {suffix}: the tensors and their order as inspect reads them"):
                refused += not container(tool, FIXTURES / file, suffix)
    report.note(f"{refused} were refused with a way out: roots to choose from, types that safetensors has not got")
    options(report, tool)


def container(tool, path, suffix):
    """One file in one format; whether it could be done."""
    out = tool.work / f"container{suffix}"
    out.unlink(missing_ok=True)
    done = tool.start("convert", path, "--allow-non-finite", "-o", out)
    if done.returncode:
        equal(done.returncode, 2, "the exit code")
        expect("error: " in done.stderr and len(done.stderr) > 100, f"no way out: {done.stderr}")
        expect(not out.exists(), "something was written")
        return False
    wanted = tool.inspect(path, "--hash")["tensors"]
    found = load(out)
    equal(list(found), [tensor["name"] for tensor in wanted], "the names, in order")
    for tensor in wanted:
        facts = {key: tensor[key] for key in ("dtype", "shape", "sha256")}
        equal(describe(found[tensor["name"]]), facts, tensor["name"])
    return True


def converted(tool, *args, suffix=".pth"):
    """What a conversion gives."""
    out = tool.work / f"options{suffix}"
    tool.run("convert", *args, "-o", out, "--force")
    return load(out)


def options(report, tool):
    """Aliases, keys, shards, types, values and names."""
    state = load(tool_state(tool))
    source = tool.work / "state.pth"
    with report.check("aliases: one storage before, one storage after; apart in safetensors"):
        tied = {"a": torch.arange(12.0).view(3, 4), "c": torch.ones(2)}
        tied |= {"b": tied["a"], "t": tied["a"].t()}
        path = tool.work / "tied.pth"
        torch.save(tied, path)
        found = converted(tool, path)
        same_state(found, tied)
        equal(found["a"].data_ptr(), found["b"].data_ptr(), "the storage of b")
        equal(found["a"].data_ptr(), found["t"].data_ptr(), "the storage of t")
        same_state(converted(tool, path, suffix=".safetensors"), tied)
    with report.check("--wrap state.model: keys around the tensors"):
        out = tool.work / "wrapped.pth"
        tool.run("convert", source, "--wrap", "state.model", "-o", out)
        found = torch.load(out, weights_only=True)
        expect(type(found["state"]["model"]) is OrderedDict, "the innermost is another type")
        same_state(found["state"]["model"], state)
    with report.check("--max-shard-size 100KB: together the same tensors, each under its file in the index"):
        out = tool.work / "shards"
        tool.run("convert", source, "--max-shard-size", "100KB", "-o", out)
        index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))
        expect(len(set(index["weight_map"].values())) > 2, "there are too few shards")
        found = {name: load(out / file)[name] for name, file in index["weight_map"].items()}
        same_state({name: found[name] for name in state}, state)
        same_state(dict(sorted(converted(tool, out).items())), dict(sorted(state.items())))
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float64", torch.float64)):
        with report.check(f"--dtype {name}, and qkv=float32 after it: PyTorch's bits"):
            found = converted(tool, source, "--dtype", name, "--dtype", r"\.qkv\.=float32")
            same_state(found, {n: t if ".qkv." in n else t.to(dtype) for n, t in state.items()})
    with report.check("--dtype float16: numbers that are lost are counted, by tensor"):
        path, out = tool.work / "extremes.pth", tool.work / "extremes.half.pth"
        torch.save({"tiny": torch.tensor([1e-9, -1e-9, 0.0, 1.0]), "huge": torch.tensor([1e6, float("inf"), 2.0])}, path)
        args = ("convert", path, "--dtype", "float16", "-o", out)
        done = tool.start(*args)
        equal(done.returncode, 2, "the exit code where a number becomes infinite")
        said = json.loads(tool.run(*args, "--allow-non-finite", "--json"))["lost"]
        wanted = [{"name": "tiny", "overflow": 0, "underflow": 2}, {"name": "huge", "overflow": 1, "underflow": 0}]
        equal(said, wanted, "what is lost")
    with report.check("--keep-values: what stands beside the tensors is JSON in the header, also the second time"):
        path, out = tool.work / "valued.pth", tool.work / "valued.safetensors"
        torch.save({"model": state, "epoch": 7, "name": "vit"}, path)
        tool.run("convert", path, "--keep-values", "--hash-inputs", "-o", out)
        kept = json.loads(header(out)["__metadata__"]["m2pt_surgery_values"])
        equal((kept["epoch"], kept["name"]), (7, "vit"), "the values")
        again = tool.work / "valued_again.safetensors"
        tool.run("convert", out, "--keep-values", "--hash-inputs", "-o", again)
        first, second = header(out)["__metadata__"], header(again)["__metadata__"]
        records = [json.loads(texts.pop("m2pt_surgery")) for texts in (first, second)]
        equal(second, first, "the texts")
        equal(records[1]["inputs"][0]["provenance"], records[0], "what the input says of itself")
        for file, record in ((path, records[0]), (out, records[1])):
            equal(record["inputs"][0]["sha256"], hashlib.sha256(file.read_bytes()).hexdigest(), "the hash")
        with safe_open(again, "pt") as file:
            equal(file.metadata()["format"], "pt", "the format")
        done = tool.start("convert", path, "--keep-values", "-o", tool.work / "valued.out.pth")
        equal(done.returncode, 2, "the exit code for .pth")
    with report.check("a header with nothing but its format is not worth a note"):
        done = tool.start("convert", again, "--drop", "^head", "-o", tool.work / "quiet.pth")
        expect("m2pt_surgery_values" in done.stderr, f"texts are dropped silently: {done.stderr}")
        done = tool.start("convert", FIXTURES / "mnist_vit.safetensors", "-o", tool.work / "quiet2.pth")
        expect("__metadata__" not in done.stderr, done.stderr)
    with report.check("--add-prefix, --strip-prefix, --rename, --keep, --drop: names change, bits do not"):
        prefixed = converted(tool, source, "--add-prefix", "net.")
        same_state(prefixed, {f"net.{name}": tensor for name, tensor in state.items()})
        path = tool.work / "prefixed.pth"
        torch.save(prefixed | {"ema.decay": torch.ones(1)}, path)
        same_state(converted(tool, path, "--strip-prefix", "net."), state)
        same_state(converted(tool, path, "--drop", "^ema", "--rename", r"s/^net\.//"), state)
        found = converted(tool, source, "--rename", r"s/blocks\.(\d+)/layers.$1.block/", "--keep", "^blocks")
        wanted = {name: tensor for name, tensor in state.items() if name.startswith("blocks")}
        renamed = {n.replace("blocks.", "layers.").replace(n.split(".")[1], n.split(".")[1] + ".block", 1): n for n in wanted}
        same_state(found, {new: wanted[old] for new, old in renamed.items()})
    for what, args, text in (
        ("two tensors of one name", ["--rename", r"s/blocks\.\d+/blocks.0/"], "would be called"),
        ("a rename that matches nothing", ["--rename", "s/nothing/x/"], "matches no tensor"),
        ("a --drop that matches nothing", ["--drop", "nothing"], "matches no tensor"),
        ("nothing left", ["--drop", "."], "no tensor is left"),
        ("a shape without --to timm", ["--img-size", "384"], "--to timm"),
        ("a cast of nothing", ["--dtype", "nothing=float16"], "matches no floating-point tensor"),
    ):
        with report.check(f"refused: {what}"):
            out = tool.work / "refused.pth"
            done = tool.start("convert", source, *args, "-o", out)
            equal(done.returncode, 2, "the exit code")
            expect(text in done.stderr, f"{text!r} is not in {done.stderr}")
            expect(not out.exists(), "something was written")


def tool_state(tool):
    """The fixtures' digit model as a plain dictionary."""
    loaded = torch.load(DIGITS, map_location="cpu", weights_only=False)
    path = tool.work / "state.pth"
    torch.save(dict(loaded.get("model", loaded)), path)
    return path
