"""The checkpoints of fixtures/families: what they hold, and the models of timm that they are for."""

import json
from functools import partial

import numpy
import torch
from safetensors.torch import load_file
from timm.layers import LayerNorm, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from report import expect
from tool import EXPECTED, FIXTURES

CLASSES = {
    "VisionTransformer": VisionTransformer,
    "VisionTransformerDistilled": VisionTransformerDistilled,
    "Beit": Beit,
}
HEADS = 2
TRUNK = ("blocks.", "norm.", "fc_norm.", "head.", "head_dist.")
TOLERANCE = 1e-5


def entries():
    """Every entry of families.json, with the hashes of its converted tensors."""
    found = json.loads((EXPECTED / "families.json").read_text(encoding="utf-8"))
    for entry in found.values():
        entry.setdefault("converted", found[entry.get("converted_of", entry["outputs_of"])]["converted"])
    return found


def outputs():
    """Inputs, and what the original models make of them."""
    return load_file(EXPECTED / "families.safetensors")


def path(entry):
    """The file of an entry."""
    return FIXTURES / entry["file"]


def at_root(entry):
    """The options that name the file of an entry and the model in it."""
    return (path(entry), *(("--root", entry["root"]) if entry["root"] else ()))


def original(entry):
    """The tensors of an entry as PyTorch, safetensors or NumPy reads them."""
    file = path(entry)
    if file.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in numpy.load(file).items()}
    if file.suffix == ".safetensors":
        return load_file(file)
    found = torch.load(file, map_location="cpu", weights_only=False)
    for key in entry["root"].split(".") if entry["root"] else ():
        found = found[key]
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def build(kind, args, **more):
    """A model of timm from what JSON can say."""
    args = {**args, **more}
    if norm := args.pop("norm_layer", None):
        args["norm_layer"] = partial(LayerNorm, eps=norm["eps"])
    if args.pop("mlp_layer", None) == "swiglu_packed":
        args["mlp_layer"] = SwiGLUPacked
    return CLASSES[kind](**args).eval()


def near(found, wanted, what, tolerance=TOLERANCE):
    """Fail unless two tensors are of one shape and near; returns how far apart they are."""
    expect(found.shape == wanted.shape, f"{what} is {tuple(found.shape)}, not {tuple(wanted.shape)}")
    gap = (found.double() - wanted.double()).abs().max().item()
    expect(gap <= tolerance, f"{what} is off by {gap:.2e}")
    return gap
