"""Tied tensors, views of one storage and expanded tensors: shared before a fold to .pth, shared after it."""

import math

import torch

import models
import reference
from report import equal, expect
from tensors import load, same_state


# Wide enough that a folded weight is computed in several pieces.
WIDTH = 136


def shared_state():
    """A state dict full of views, beside and inside the blocks of a small ViT."""
    state = models.small(21, torch.float32, embed_dim=WIDTH)
    generator = torch.Generator().manual_seed(22)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    base = normal(60)
    state["view.head"] = base[2:10].view(2, 4)
    state["view.overlap"] = base[6:18].view(3, 4).t()
    state["view.stepped"] = base[20:50:3]
    state["view.scalar"] = base[59]
    state["tied.first"] = state["tied.second"] = normal(5, 6)
    state["tied.transposed"] = state["tied.first"].t()
    state["expanded"] = normal(1, 7).expand(9, 7)
    state["expanded.twin"] = state["expanded"][2:4]
    state["alone.transposed"] = normal(4, 6).t()
    state["alone.channels_last"] = normal(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["alone.slice"] = normal(100)[40:44]
    state["counts.first"] = torch.arange(12)
    state["counts.second"] = state["counts.first"][4:]
    state["empty"] = base[0:0]
    # Folded parameters may be views, too: of one flat buffer, of each other, transposed, and expanded.
    shape = state["blocks.0.attn.proj.weight"].shape
    flat = normal(3 * shape.numel() + 40)
    for block in range(3):
        state[f"blocks.{block}.attn.proj.weight"] = flat[block * shape.numel() :][: shape.numel()].view(shape)
    state["blocks.0.attn.proj.bias"] = flat[-40:]
    state["blocks.1.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"]
    state["blocks.2.attn.qkv.weight"] = transposed(state["blocks.2.attn.qkv.weight"])
    state["blocks.2.mlp.fc2.weight"] = normal(1, 4 * WIDTH).expand(WIDTH, 4 * WIDTH)
    return state


def transposed(tensor):
    """The same values, stored column by column."""
    return tensor.t().contiguous().t()


def shared_aux():
    """An auxiliary whose weights are views, too."""
    aux = models.small(23, torch.float32, embed_dim=WIDTH)
    aux["blocks.0.attn.qkv.weight"] = transposed(aux["blocks.0.attn.qkv.weight"])
    aux["blocks.2.attn.qkv.weight"] = transposed(aux["blocks.2.attn.qkv.weight"])
    aux["blocks.1.mlp.fc1.weight"] = aux["blocks.0.mlp.fc1.weight"]
    aux["blocks.1.mlp.fc2.weight"] = aux["blocks.1.mlp.fc2.weight"][:, :1].expand(WIDTH, 4 * WIDTH)
    return aux


def sharers(state):
    """The groups of names whose tensors lie in one storage, those with more than one name."""
    by_storage = {}
    for name, tensor in state.items():
        if tensor.numel():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return sorted(names for names in by_storage.values() if len(names) > 1)


def main(report, tool):
    """Values in both containers, sharing in .pth, also after a cast."""
    state, aux = shared_state(), shared_aux()
    source, other = tool.work / "shared.pth", tool.work / "shared_aux.pth"
    torch.save(state, source)
    torch.save(aux, other)
    args = (source, "--aux", other, "--lambda", "0.1")
    pairs = [(aux, reference.constant(0.1))]
    wanted = reference.fold(state, pairs)
    kept = {name: tensor for name, tensor in wanted.items() if tensor is state[name]}

    with report.check("tied tensors, views and expanded ones fold to .pth with their values"):
        path = tool.fold(*args, out="shared_out.pth")
        same_state(load(path), wanted)
        same_state(load(path, mmap=True), wanted)
    with report.check("tensors that share a storage share one after the fold to .pth"):
        found = load(tool.work / "shared_out.pth")
        groups = sharers({name: found[name] for name in kept})
        equal(groups, sharers(kept), "the groups of sharing tensors")
        folded = [name for name in wanted if name not in kept]
        lone = [group for group in sharers(found) if set(group) & set(folded)]
        equal(lone, [], "folded tensors that share")
        equal(found["expanded"].stride(), (0, 1), "strides of the expanded tensor")
        equal(found["expanded"].untyped_storage().nbytes(), 7 * 4, "bytes of the expanded tensor's storage")
        found["tied.first"][0, 0] = 42.0
        expect(found["tied.second"][0, 0] == 42.0 == found["tied.transposed"][0, 0], "a change does not reach the twin")
    with report.check("they share one after a cast to bfloat16, too"):
        found = load(tool.fold(*args, "--dtype", "bfloat16", out="shared_cast.pth"))
        same_state(found, reference.fold(state, pairs, dtype=torch.bfloat16))
        equal(sharers({name: found[name] for name in kept}), sharers(kept), "the groups of sharing tensors")
    with report.check("what lies between the views of a storage does not matter, be it NaN"):
        gap = torch.full((12,), math.nan)
        gap[:2], gap[10:] = 1.0, 2.0
        with_gap = {**state, "gap.first": gap[:2], "gap.second": gap[10:]}
        torch.save(with_gap, tool.work / "gap.pth")
        found = load(tool.fold(tool.work / "gap.pth", *args[1:], out="gap_out.pth"))
        same_state(found, reference.fold(with_gap, pairs))
    with report.check("tied tensors, views and expanded ones fold to .safetensors with their values"):
        same_state(load(tool.fold(*args, out="shared_out.safetensors")), wanted)
