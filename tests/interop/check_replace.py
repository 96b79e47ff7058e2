"""Folds with tensors replaced: PyTorch's state dict of the same steps, loaded strictly, and the same sharing."""

import json

import torch
from safetensors.torch import save_file

import models
import reference
from report import equal, expect
from tensors import load, same_state, same_tensor

LAMBDA = 0.3


def trained(state, seed, dtype=torch.float32):
    """New values for the head, the norms and one linear layer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [name for name in state if "norm" in name or name.startswith("head.") or name == "blocks.1.mlp.fc2.weight"]
    return {name: models.hard(state[name].shape, generator).to(dtype) for name in chosen}


def storage(tensor):
    """What tells whether tensors share one."""
    return tensor.untyped_storage().data_ptr()


@torch.inference_mode()
def main(report, tool):
    """Containers, types, prefixes, tied tensors; the model that verify compares with."""
    state, aux = models.small(31, torch.float32), models.small(32, torch.float32)
    new = trained(state, 33)
    target, other = tool.work / "replace_target.pth", tool.work / "replace_aux.pth"
    torch.save(state, target)
    torch.save(aux, other)
    pairs = [(aux, reference.constant(LAMBDA))]
    how = ("--aux", other, "--lambda", LAMBDA)
    wanted = reference.fold({**state, **new}, pairs)
    expect(len(new) == 17, f"{len(new)} tensors are replaced")

    files = {name: tool.work / f"replace_new{name}" for name in (".pth", ".safetensors")}
    torch.save(new, files[".pth"])
    save_file(new, files[".safetensors"])
    for name, file in files.items():
        for suffix in (".pth", ".safetensors"):
            with report.check(f"fold --replace *{name} into *{suffix}: PyTorch's bits, loaded strictly"):
                found = load(tool.fold(target, *how, "--replace", file, "--force", out=f"replaced{suffix}"))
                same_state(found, wanted)
                for key in new.keys() - {"blocks.1.mlp.fc2.weight"}:
                    same_tensor(key, found[key], new[key])
                models.small_model().load_state_dict(found, strict=True)

    with report.check("fold --replace of wrapped and nested files: names behind module., parts of files"):
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "model": wrapped}, tool.work / "replace_wrapped.pth")
        torch.save({"best": new, "last": {name: tensor + 1 for name, tensor in new.items()}}, tool.work / "replace_two.pth")
        args = (tool.work / "replace_wrapped.pth", *how, "--replace", tool.work / "replace_two.pth")
        tool.run("fold", *args, "-o", tool.work / "unwritten.pth", code=2)
        found = load(tool.fold(*args, "--replace-root", "best", out="replaced_wrapped.pth"))
        same_state(found, {f"module.{name}": tensor for name, tensor in wanted.items()})

    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with report.check(f"a target in {dtype}, replaced by float32: its own type, or the one that is asked for"):
            narrow = {name: tensor.to(dtype) for name, tensor in state.items()}
            torch.save(narrow, tool.work / "replace_typed.pth")
            args = (tool.work / "replace_typed.pth", *how, "--replace", files[".pth"], "--allow-non-finite", "--force")
            mixed = {**narrow, **new}
            same_state(load(tool.fold(*args, out="replaced_typed.pth")), reference.fold(mixed, pairs))
            found = load(tool.fold(*args, "--dtype", str(dtype).removeprefix("torch."), out="replaced_typed.pth"))
            same_state(found, reference.fold(mixed, pairs, dtype=dtype))

    with report.check("tied tensors: the replaced one is apart, the others keep their values and share them"):
        tied = dict(state)
        tied["head_dist.weight"] = tied["copy.weight"] = tied["head.weight"]
        torch.save(tied, tool.work / "replace_tied.pth")
        args = (tool.work / "replace_tied.pth", *how, "--replace", files[".pth"], "--force")
        found = load(tool.fold(*args, out="replaced_tied.pth"))
        same_state(found, reference.fold({**tied, **new}, pairs))
        equal(storage(found["head_dist.weight"]), storage(found["copy.weight"]), "the storage of the others")
        expect(storage(found["head.weight"]) != storage(found["copy.weight"]), "the replaced one shares theirs")
        # A file that has all three in one storage.
        torch.save({name: new["head.weight"] for name in ("copy.weight", "head.weight", "head_dist.weight")}, tool.work / "replace_all.pth")
        found = load(tool.fold(*args[:-2], tool.work / "replace_all.pth", "--force", out="replaced_tied.pth"))
        equal(len({storage(found[name]) for name in ("copy.weight", "head.weight", "head_dist.weight")}), 1, "storages")
        same_tensor("copy.weight", found["copy.weight"], new["head.weight"])

    with report.check("verify --replace: the fold is the pathway with these tensors; timm computes what it does"):
        torch.manual_seed(34)
        model, beside = models.small_model().eval(), models.small_model()
        plain = models.plain(model)
        head = {name: torch.randn_like(plain[name]) for name in ("head.weight", "head.bias", "norm.weight", "blocks.0.norm2.bias")}
        torch.save(plain, target)
        torch.save(models.plain(beside), other)
        save_file(head, files[".safetensors"])
        merged = tool.fold(target, *how, "--replace", files[".safetensors"], out="replaced_verify.pth")
        flags = ("--heads", 4, "--json", "--pathway", target, *how)
        found = json.loads(tool.run("verify", merged, *flags, "--replace", files[".safetensors"]))["pathway"]
        report.note(f"relative difference {found['relative']:.1e}")
        equal(sorted(found["replaced"]["tensors"]), sorted(head), "the replaced tensors")
        tool.run("verify", merged, *flags, code=1)
        model.load_state_dict(reference.fold({**plain, **head}, [(models.plain(beside), reference.constant(LAMBDA))]), strict=True)
        images = torch.randn(3, 3, 16, 16)
        wanted = model(images)
        model.load_state_dict(load(merged), strict=True)
        expect(torch.equal(model(images), wanted), "the logits are others")
