"""Models in several files: Hugging Face's folders with an index, of safetensors and of torch.save."""

import json
import shutil

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

import diff_expect
from diff_saves import load
from diff_tensors import layouts, short, values


def write(cases):
    """Each folder by its own path and by that of its index."""
    cases.group = "sharded folders"
    state = {
        "layer.%d.%s" % (i, name): values(dtype, 300, i).view(10, 30) for i in range(6) for name, dtype in TYPES.items()
    }
    state["scalar"], state["empty"] = torch.tensor(3), torch.zeros(0, 2)
    for safe, suffix in ((True, "safetensors"), (False, "bin")):
        path = cases.path("by huggingface_hub " + suffix + ".folder")
        path.mkdir()
        save_torch_state_dict(state, path, max_shard_size=4000, safe_serialization=safe)
        both(cases, path)
    shared = layouts(torch.float32, 71)
    path = cases.path("views and shared storages in bin shards.folder")
    by_hand(path, [dict(list(shared.items())[i::3]) for i in range(3)], "pytorch_model", "bin")
    both(cases, path)
    path = cases.path("nested names in bin shards.folder")
    by_hand(path, [{"a.b": torch.rand(2)}, {"a b": torch.rand(3), "": torch.rand(1)}], "pytorch_model", "bin")
    both(cases, path)
    path = cases.path("a diffusion model.folder")
    by_hand(path, [{"a": torch.rand(2)}, {"b": torch.rand(3)}], "diffusion_pytorch_model", "safetensors")
    both(cases, path)
    path = cases.path("one shard.folder")
    by_hand(path, [{"a": torch.rand(2), "b": torch.rand(3)}], "model", "safetensors")
    both(cases, path)
    path = cases.path("legacy streams as shards.folder")
    by_hand(path, [{"a": torch.rand(2)}, {"b": torch.rand(3).t()}], "pytorch_model", "bin", new=False)
    both(cases, path)
    path = cases.path("a variant.folder")
    by_hand(path, [{"a": torch.rand(2)}, {"b": torch.rand(3)}], "model", "safetensors")
    shutil.move(path / "model.safetensors.index.json", path / "model.safetensors.index.fp16.json")
    index(cases, path, path / "model.safetensors.index.fp16.json")


TYPES = {short(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.int64)}


def by_hand(folder, shards, stem, suffix, new=True):
    """Shards and their index."""
    folder.mkdir()
    where = {}
    for number, shard in enumerate(shards):
        name = "%s-%05d-of-%05d.%s" % (stem, number + 1, len(shards), suffix)
        where.update((key, name) for key in shard)
        if suffix == "safetensors":
            save_file(shard, folder / name, {"format": "pt"})
        else:
            torch.save(shard, folder / name, _use_new_zipfile_serialization=new)
    total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
    # The index lists the names in an order of its own.
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2)
    (folder / ("%s.%s.index.json" % (stem, suffix))).write_text(text, encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")


def both(cases, folder):
    """The folder, and its index."""
    (path,) = folder.glob("*.index.json")
    index(cases, folder, path)
    index(cases, folder, folder)


def index(cases, folder, given):
    """What the shards hold, under the names in the index."""
    (path,) = folder.glob("*.index*.json")
    where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    loaded = {}
    for name in sorted(set(where.values())):
        shard = load_file(folder / name) if name.endswith(".safetensors") else load(folder / name)
        loaded.update((key, shard[key]) for key in where if where[key] == name)
    tensors, others = diff_expect.state(loaded)
    what = folder.stem + (", by its folder" if given == folder else ", by its index")
    cases.add(what, given, tensors, others, any_order=True)
