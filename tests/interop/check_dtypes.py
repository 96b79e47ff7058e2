"""Folds in every precision, casts, and tensors of every type carried along."""

import torch

import models
import reference
from report import expect
from tensors import load, same_state, trusted
from tool import FIXTURES

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
PAIRS = [
    *((F64, F64), (F32, F32), (F16, F16), (BF16, BF16)),
    *((F32, BF16), (F32, F16), (BF16, F32), (F16, F32), (BF16, F16), (F16, BF16)),
    *((F64, F32), (F64, BF16), (F32, F64), (BF16, F64), (F16, F64)),
]
# The bits of 0.1 differ in every type; 0.5 is exact, and brings sums that lie halfway between two 16-bit numbers.
LAMBDAS = ("0.1", "0.5", "-0.37")
CASTS = [(F64, F32), (F64, F16), (F64, BF16), (F32, F16), (F32, BF16), (F32, F64), (BF16, F32), (BF16, F16), (F16, F64)]


def short(dtype):
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def main(report, tool):
    """Pairs, casts, types within one model, other types."""
    files = {}
    for dtype in (F64, F32, F16, BF16):
        for role, seed in (("target", 11), ("aux", 12)):
            files[role, dtype] = save(tool, models.small(seed, dtype), f"{role}_{short(dtype)}.pth")

    for target, aux in PAIRS:
        with report.check(f"{short(target)} target + {short(aux)} auxiliary, lambda {', '.join(LAMBDAS)}"):
            for scale in LAMBDAS:
                compare(tool, files["target", target], files["aux", aux], scale, None)
    for target, dtype in CASTS:
        with report.check(f"{short(target)} target cast by --dtype {short(dtype)}"):
            compare(tool, files["target", target], files["aux", F32], "0.1", dtype)

    with report.check("a model of several types: float16 blocks, bfloat16 norms, float64 head, a counter"):
        mixed = {}
        for name, tensor in models.small(13, F32).items():
            dtype = BF16 if "norm" in name else F64 if "head" in name else F16 if "blocks" in name else F32
            mixed[name] = tensor.to(dtype)
        mixed["blocks.1.mlp.fc1.weight"] = mixed["blocks.1.mlp.fc1.weight"].double()
        mixed["steps"] = torch.tensor(123456789012)
        compare(tool, save(tool, mixed, "mixed.pth"), files["aux", BF16], "0.1", None)
        compare(tool, tool.work / "mixed.pth", files["aux", F32], "0.1", BF16)
    carried(report, tool, files["aux", F32])


def save(tool, state, name):
    """torch.save into the work folder."""
    path = tool.work / name
    torch.save(state, path)
    return path


def compare(tool, target, aux, scale, dtype):
    """Fold into both containers and compare with PyTorch."""
    pairs = [(trusted(aux), reference.constant(float(scale)))]
    wanted = reference.fold(trusted(target), pairs, dtype=dtype)
    cast = ["--dtype", short(dtype)] if dtype else []
    for suffix in (".pth", ".safetensors"):
        path = tool.fold(target, "--aux", aux, f"--lambda={scale}", *cast, "--force", out=f"dtype{suffix}")
        same_state(load(path), wanted)


def carried(report, tool, aux):
    """Tensors of every type that PyTorch has stay as they are."""
    others = {f"other.{k}": v for k, v in trusted(FIXTURES / "layouts" / "dtypes.pth").items() if k != "nonfinite"}
    state = {**models.small(14, F32), **others}
    unknown = [name for name, tensor in others.items() if tensor.dtype in (torch.complex32, torch.complex128)]
    args = ["--aux", aux, "--lambda", "0.1"]
    wanted = reference.fold(state, [(trusted(aux), reference.constant(0.1))])
    with report.check(f"tensors of {len(others)} types beside the blocks, to .pth"):
        path = save(tool, state, "carried.pth")
        same_state(load(tool.fold(path, *args, out="carried_out.pth")), wanted)
    with report.check("tensors of two types that safetensors lacks are refused, nothing is written"):
        out = tool.work / "carried_out.safetensors"
        tool.run("fold", tool.work / "carried.pth", *args, "-o", out, code=2)
        expect(not out.exists(), "there is an output file")
    with report.check("tensors of all other types beside the blocks, to .safetensors"):
        for name in unknown:
            del state[name], wanted[name]
        path = save(tool, state, "carried_fewer.pth")
        same_state(load(tool.fold(path, *args, out="carried_fewer.safetensors")), wanted)
