"""Shards as huggingface_hub loads them, and tensors under a key as training scripts load them."""

import json
from collections import OrderedDict

import torch
from huggingface_hub import load_torch_model, split_torch_state_dict_into_shards

import cases
import models
import reference
from report import equal, expect
from tensors import load, same_state


def main(report, tool):
    """Folds into shards of several sizes in both formats, and under keys."""
    case = cases.named("lambda 0.1")
    wanted = reference.from_args(case["args"])[1]
    for kind, stem, suffix in (("safetensors", "model", ".safetensors"), ("pth", "pytorch_model", ".bin")):
        for size in ("50KB", "200KB", "0.5MB"):
            with report.check(f"shards of {size}, {kind}: files, index and tensors are those of huggingface_hub"):
                folder = tool.fold(*case["args"], "--max-shard-size", size, "--format", kind, out=f"shards_{kind}_{size}")
                shards(folder, stem, suffix, wanted, size)
        with report.check(f"shards of 200KB, {kind}: huggingface_hub loads them into timm's model"):
            model = models.digits()
            load_torch_model(model, tool.work / f"shards_{kind}_200KB", strict=True, safe=kind == "safetensors")
            same_state(dict(model.state_dict()), wanted)
        with report.check(f"all in one shard, {kind}: a single file, without an index"):
            folder = tool.fold(*case["args"], "--max-shard-size", "2GB", "--format", kind, out=f"single_{kind}")
            equal([path.name for path in folder.iterdir()], [stem + suffix], "the files")
            same_state(load(folder / f"{stem}{suffix}"), wanted)
    for key in ("model", "state.model"):
        with report.check(f"--wrap {key}: torch.load(weights_only=True), mapped and not"):
            path = tool.fold(*case["args"], "--wrap", key, out=f"wrapped_{key}.pth")
            for how in ({}, {"mmap": True}):
                wrapped(path, key.split("."), wanted, how)


def shards(folder, stem, suffix, wanted, size):
    """The folder holds what huggingface_hub would have put there."""
    index = json.loads((folder / f"{stem}{suffix}.index.json").read_text(encoding="utf-8"))
    pattern = f"{stem}{{suffix}}{suffix}"
    split = split_torch_state_dict_into_shards(wanted, filename_pattern=pattern, max_shard_size=size)
    equal(index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}, "the index")
    names = {path.name for path in folder.iterdir()}
    equal(names, {*split.filename_to_tensors, f"{stem}{suffix}.index.json"}, "the files")
    for name, tensors in split.filename_to_tensors.items():
        same_state(load(folder / name), {tensor: wanted[tensor] for tensor in tensors})


def wrapped(path, keys, wanted, how):
    """One plain dictionary for each key, and the state dict in the innermost."""
    found = torch.load(path, weights_only=True, **how)
    for key in keys:
        expect(type(found) is dict, f"{type(found)} above {key}")
        equal(list(found), [key], "the keys")
        found = found[key]
    expect(type(found) is OrderedDict, f"{type(found)} of tensors")
    same_state(found, wanted)
