"""The forms in which people save models: every one of them folds to the same tensors."""

import argparse
import zipfile
from collections import OrderedDict

import torch
from safetensors.torch import save_file

import models
import reference
from report import equal, expect
from tensors import header, load, same_state


def rezipped(source, path, compression):
    """The same archive as Python's zipfile writes it: perhaps compressed, and not aligned."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def forms(state, model, folder):
    """(what, file) for many ways of saving one state dict."""

    def save(name, value, **how):
        path = folder / f"{name}.pth"
        torch.save(value, path, **how)
        return path

    yield "a plain dictionary", save("plain", state)
    yield "model.state_dict(), which carries metadata", save("state_dict", model.state_dict())
    yield "parameters", save("parameters", OrderedDict((k, torch.nn.Parameter(v)) for k, v in state.items()))
    yield "{'model', 'epoch', 'args'}", save(
        "model", {"model": state, "epoch": 7, "args": argparse.Namespace(lr=1e-3, data="/data")}
    )
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    yield "{'state_dict', 'optimizer', 'rng'}", save(
        "training", {"state_dict": state, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    )
    for protocol in (3, 4, 5):
        yield f"pickle protocol {protocol}", save(f"protocol{protocol}", state, pickle_protocol=protocol)
    rezipped(folder / "plain.pth", folder / "deflated.pth", zipfile.ZIP_DEFLATED)
    yield "a compressed archive", folder / "deflated.pth"
    rezipped(folder / "plain.pth", folder / "unaligned.pth", zipfile.ZIP_STORED)
    yield "an archive that is not aligned", folder / "unaligned.pth"
    with open(folder / "renamed.bin", "wb") as file:
        torch.save(state, file)
    yield "a file named .bin", folder / "renamed.bin"
    save_file(state, folder / "plain.safetensors")
    yield "safetensors", folder / "plain.safetensors"


def main(report, tool):
    """Each form as the target, and as the auxiliary."""
    folder = tool.work / "forms"
    folder.mkdir()
    model = models.small_model()
    target, aux = models.small(41, torch.float32), models.small(42, torch.float32)
    torch.save(aux, folder / "aux.pth")
    model.load_state_dict(target)
    wanted = reference.fold(target, [(aux, reference.constant(0.1))])
    swapped = reference.fold(aux, [(target, reference.constant(0.1))])
    for what, path in forms(target, model, folder):
        with report.check(f"{what} as target and as auxiliary"):
            found = load(tool.fold(path, "--aux", folder / "aux.pth", "--lambda", "0.1", "--force", out="form.pth"))
            names = list(header(path)) if path.suffix == ".safetensors" else list(wanted)
            same_state(found, {name: wanted[name] for name in names})
            found = load(tool.fold(folder / "aux.pth", "--aux", path, "--lambda", "0.1", "--force", out="form.pth"))
            same_state(found, swapped)
    lazy(report, tool, target, aux)


def lazy(report, tool, target, aux):
    """PyTorch marks conjugated and negated views instead of computing them, and torch.save keeps the mark."""
    values = torch.arange(1.0, 7.0)
    for what, tensor in (
        ("conjugated", torch.complex(values, values).conj()),
        ("negated", torch._neg_view(values)),
    ):
        with report.check(f"a lazily {what} tensor: refused, or read as PyTorch reads it"):
            state = {**target, "lazy": tensor, "lazy.parameter": torch.nn.Parameter(tensor)}
            torch.save(state, tool.work / "lazy.pth")
            never_wrong(tool, reference.fold(state, [(aux, reference.constant(0.1))]))


def never_wrong(tool, wanted):
    """Fold lazy.pth, which may be refused for its tensor `lazy`."""
    out = tool.work / "lazy_out.pth"
    out.unlink(missing_ok=True)
    args = ("fold", tool.work / "lazy.pth", "--aux", tool.work / "forms" / "aux.pth", "--lambda", "0.1", "-o", out)
    done = tool.start(*args)
    if done.returncode == 2:
        expect(not out.exists(), "it was refused, but there is an output file")
        return
    equal(done.returncode, 0, "the exit code")
    same_state(load(out), wanted)
