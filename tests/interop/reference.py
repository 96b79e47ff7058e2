"""What PyTorch computes for a fold, from the same command-line arguments; shares no code with the program."""

import argparse

import torch

from tensors import trusted
from tool import ROOT

KINDS = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
SCALE, AUX_WEIGHT = ".cross_modal_scale", ".aux_weight"


def layer_of(name):
    """(block, kind, 'weight' or 'bias') of a linear layer's parameter, else None."""
    parts = name.split(".")
    if len(parts) == 5 and parts[0] == "blocks" and parts[4] in ("weight", "bias"):
        kind = KINDS.get(f"{parts[2]}.{parts[3]}")
        return kind and (int(parts[1]), kind, parts[4])
    return None


def fold(target, pairs, bias=False, dtype=None):
    """`W + lambda * A` for every chosen parameter; others are the very tensors of `target`, unless `dtype` casts them.

    `pairs` are (auxiliary state, rule) and `rule(block, kind)` gives lambda, or None for no change. A sum with a
    float64 tensor in it is made in float64, any other in float32, and rounded once.
    """
    result = {}
    for name, weight in target.items():
        layer, value = layer_of(name), weight
        terms = []
        if layer and (bias or layer[2] == "weight"):
            terms = [(rule(layer[0], layer[1]), aux[name]) for aux, rule in pairs]
            terms = [(scale, tensor) for scale, tensor in terms if scale is not None]
        if terms:
            wide = torch.float64 in (weight.dtype, *(tensor.dtype for _, tensor in terms))
            work = torch.float64 if wide else torch.float32
            value = weight.to(work)
            for scale, tensor in terms:
                value = value + scale * tensor.to(work)
            value = value.to(weight.dtype if dtype is None else dtype)
        elif dtype is not None and weight.is_floating_point():
            value = weight.to(dtype)
        result[name] = value
    return result


def learned(target):
    """`W + cross_modal_scale * aux_weight`; auxiliary weights and scales are gone."""
    result = {}
    for name, tensor in target.items():
        if name.endswith((SCALE, AUX_WEIGHT)):
            continue
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module + SCALE in target:
            tensor = tensor + target[module + SCALE] * target[module + AUX_WEIGHT]
        result[name] = tensor
    return result


def constant(scale):
    """The same lambda everywhere."""
    return lambda block, kind: scale


def rule_of(text, depth):
    """The rule that a --lambda text means, for a model with `depth` blocks."""
    if ".." in text:
        start, end = map(float, text.split(".."))
        return lambda block, kind: start + (end - start) * block / (depth - 1)
    if "=" in text:
        kinds = {kind: float(scale) for kind, scale in (part.split("=") for part in text.split(","))}
        return lambda block, kind: kinds.get(kind)
    return constant(float(text))


def blocks_of(text):
    """The numbers in a text like `0-5,8`."""
    ranges = [part.split("-") for part in text.split(",")]
    return {number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}


def arguments(args):
    """The options of `fold` that the reference knows; an unknown one is an error."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("target")
    parser.add_argument("--aux", action="append", default=[])
    parser.add_argument("--lambda", dest="scale")
    parser.add_argument("--layers")
    parser.add_argument("--blocks")
    parser.add_argument("--bias", choices=("keep", "fold"), default="keep")
    parser.add_argument("--dtype")
    return parser.parse_args(args)


def from_args(args):
    """(the target's state dict, the folded one) for what follows `fold` on the command line."""
    options = arguments(args)
    target = trusted(ROOT / options.target)
    if not options.aux:
        return target, learned(target)
    depth = 1 + max(layer[0] for layer in map(layer_of, target) if layer)
    kinds = set(options.layers.split(",")) if options.layers else set(KINDS.values())
    blocks = blocks_of(options.blocks) if options.blocks else set(range(depth))

    def chosen(rule):
        return lambda block, kind: rule(block, kind) if kind in kinds and block in blocks else None

    pairs = []
    for given in options.aux:
        file, _, scale = given.partition("=")
        pairs.append((trusted(ROOT / file), chosen(rule_of(scale or options.scale, depth))))
    dtype = getattr(torch, options.dtype) if options.dtype else None
    return target, fold(target, pairs, bias=options.bias == "fold", dtype=dtype)
