"""Position and patch embeddings, channels, frames and heads made to fit, against timm's functions and PyTorch; folders for timm."""

import json

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer

import families
import models
from report import equal, expect
from tensors import describe, load, same_state
from tool import FIXTURES

TOLERANCE = 1e-6
PATCHES, POSITIONS = "patch_embed.proj.weight", "pos_embed"
SMALL = {"patch_size": 16, "embed_dim": 384, "depth": 1, "num_heads": 6, "num_classes": 5}


def main(report, tool):
    """A ViT-S of one block for the shapes, whole models for the folders."""
    sources = {
        "square": small(tool, "square"),
        "oblong": small(tool, "oblong", img_size=(128, 512), in_chans=1),
        "no class token": small(tool, "bare", class_token=False, global_pool="avg"),
        "registers": small(tool, "registers", reg_tokens=4, no_embed_class=True),
    }
    worst = {}
    for name, (kind, args, wanted) in cases(sources).items():
        with report.check(f"convert {name}: what timm and PyTorch compute"):
            path, state = sources[kind]
            found = converted(tool, path, *args)
            worst[name] = compare(found, state, wanted)
    gap = max(worst, key=worst.get)
    report.note(f"largest difference: {worst[gap]:.1e} ({gap})")
    heads(report, tool, sources["square"])
    for name, make in FOLDERS.items():
        with report.check(f"--timm-dir {name}: timm opens the folder, and computes what the source does"):
            folder(tool, name.replace(" ", "_"), *make(tool))


def small(tool, name, **more):
    """A seeded ViT-S with one block: the file, and the state dict."""
    torch.manual_seed(len(name))
    state = models.plain(VisionTransformer(**{**SMALL, **more}))
    state[POSITIONS] = torch.randn_like(state[POSITIONS])
    path = tool.work / f"shape_{name}.pth"
    torch.save(state, path)
    return path, state


def converted(tool, path, *args):
    """What a conversion to timm's names gives."""
    out = tool.work / "shape.out.pth"
    tool.run("convert", path, "--to", "timm", *args, "-o", out, "--force")
    return load(out)


def compare(found, before, wanted):
    """Every tensor is the one that was wanted, or the old one, bit for bit."""
    equal(sorted(found), sorted({**before, **wanted}), "the names")
    gaps = [families.near(found[name], tensor, name, TOLERANCE) for name, tensor in wanted.items()]
    same_state({k: v for k, v in found.items() if k not in wanted}, {k: v for k, v in before.items() if k not in wanted})
    changed = [name for name, tensor in wanted.items() if not (found[name].shape == before[name].shape)]
    expect(changed, "no shape changed")
    return max(gaps)


def cases(sources):
    """By name: the source, the options, and the tensors that they change."""
    square, oblong = sources["square"][1], sources["oblong"][1]
    bare, registers = sources["no class token"][1], sources["registers"][1]

    def positions(state, new, old=None, prefix=1):
        return {POSITIONS: resample_abs_pos_embed(state[POSITIONS], new, old, num_prefix_tokens=prefix)}

    def channels(state, how):
        return {PATCHES: how(state[PATCHES])}

    found = {
        "--img-size 384": ("square", ["--img-size", 384], positions(square, (24, 24))),
        "--img-size 96": ("square", ["--img-size", 96], positions(square, (6, 6))),
        "--img-size 224x448": ("square", ["--img-size", "224x448"], positions(square, (14, 28))),
        "--img-size 112x224, no class token": (
            "no class token",
            ["--img-size", "112x224"],
            positions(bare, (7, 14), prefix=0),
        ),
        "--img-size 384, registers": ("registers", ["--img-size", 384], positions(registers, (24, 24), prefix=0)),
        "--grid 8x32 --img-size 128x1024": (
            "oblong",
            ["--grid", "8x32", "--img-size", "128x1024"],
            positions(oblong, (8, 64), (8, 32)),
        ),
        "--grid 8x32 --img-size 288": ("oblong", ["--grid", "8x32", "--img-size", 288], positions(oblong, (18, 18), (8, 32))),
        "--in-chans 1, timm": ("square", ["--in-chans", 1], channels(square, lambda w: adapt_input_conv(1, w))),
        "--in-chans 5, timm": ("square", ["--in-chans", 5], channels(square, lambda w: adapt_input_conv(5, w))),
        "--positions ast": (
            "square",
            ["--positions", "ast", "--img-size", "128x1024"],
            {POSITIONS: ast(square[POSITIONS], (8, 64))},
        ),
    }
    for size in ((32, 32), (8, 8), (14, 14), (16, 8)):
        text = "x".join(map(str, size))
        weight = resample_patch_embed(square[PATCHES], list(size))
        # The images stay those of 14 x 14 patches: the table is as it was.
        found[f"--patch-size {text}"] = ("square", ["--patch-size", text], {PATCHES: weight})
    resized = {PATCHES: resample_patch_embed(square[PATCHES], [32, 32]), **positions(square, (7, 7))}
    found["--patch-size 32 --img-size 224"] = ("square", ["--patch-size", 32, "--img-size", 224], resized)
    rules = {
        "mean": lambda w, n: w.double().mean(1, keepdim=True).expand(-1, n, -1, -1),
        "sum": lambda w, n: w.double().sum(1, keepdim=True).expand(-1, n, -1, -1) / n,
        "repeat": lambda w, n: w.double()[:, [m % 3 for m in range(n)]] * (3 / n),
        "first": lambda w, n: torch.nn.functional.pad(w, (0, 0, 0, 0, 0, max(0, n - 3)))[:, :n],
    }
    for rule, how in rules.items():
        for count in (1, 2, 4, 6):
            wanted = channels(square, lambda w, how=how, count=count: how(w, count).float())
            found[f"--in-chans {count}, {rule}"] = ("square", ["--in-chans", count, "--channels", rule], wanted)
    return found


def ast(table, new):
    """As AST fits the table of an image model to a spectrogram: cut along frequency, bilinear along time."""
    side = int((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    for dim, length in ((2, new[0]), (3, new[1])):
        if length <= side:
            grid = grid.narrow(dim, side // 2 - length // 2, length)
        else:
            size = [length, grid.shape[3]] if dim == 2 else [grid.shape[2], length]
            grid = torch.nn.functional.interpolate(grid, size=size, mode="bilinear")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def heads(report, tool, source):
    """Heads, pooling, tubelets, types, and what is refused."""
    path, state = source
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    for args in (("--num-classes", 0), ("--head", "drop")):
        with report.check(f"convert {args[0]} {args[1]}: loads into timm's model without a head"):
            found = converted(tool, path, *args)
            same_state(found, bare)
            VisionTransformer(**{**SMALL, "num_classes": 0}).load_state_dict(found, strict=True)
    for args, classes in ((("--head", "zero"), 5), (("--head", "zero", "--num-classes", 11), 11)):
        with report.check(f"convert {' '.join(map(str, args))}: zeros of {classes} classes"):
            found = converted(tool, path, *args)
            VisionTransformer(**{**SMALL, "num_classes": classes}).load_state_dict(found, strict=True)
            expect(not found["head.weight"].any() and not found["head.bias"].any(), "the head is not zero")
            same_state({k: v for k, v in found.items() if not k.startswith("head.")}, bare)
    with report.check("convert --global-pool avg: the norm is fc_norm, and timm pools the patches"):
        found = converted(tool, path, "--global-pool", "avg")
        VisionTransformer(**SMALL, global_pool="avg").load_state_dict(found, strict=True)
        equal(describe(found["fc_norm.weight"]), describe(state["norm.weight"]), "the norm")
    with report.check("convert --global-pool token: back again"):
        averaged = tool.work / "averaged.pth"
        torch.save(found, averaged)
        same_state(dict(sorted(converted(tool, averaged, "--global-pool", "token").items())), dict(sorted(state.items())))
    with report.check("a linear-probe head in float64: within 1e-6 of BatchNorm1d and Linear"):
        probe(tool, state)
    for name, how in {
        "sum": lambda w: w.double().sum(2),
        "mean": lambda w: w.double().mean(2),
        "center": lambda w: w[:, :, w.shape[2] // 2],
    }.items():
        with report.check(f"convert --tubelet {name}: the frames of a Conv3d"):
            frames = {**state, PATCHES: torch.randn(384, 3, 2, 16, 16, generator=torch.Generator().manual_seed(4))}
            video = tool.work / "frames.pth"
            torch.save(frames, video)
            found = converted(tool, video, "--tubelet", name, "--family", "videomae")
            families.near(found[PATCHES], how(frames[PATCHES]).float(), PATCHES, TOLERANCE)
    for text, how in {"2": [0.5, 0.5], "3:center": [0, 1, 0]}.items():
        with report.check(f"convert --inflate {text}: a Conv2d over frames"):
            # VideoMAE keeps no bias of the key.
            zeroed = {n: t * torch.tensor([1.0, 0, 1]).repeat_interleave(384) if n.endswith("qkv.bias") else t for n, t in state.items()}
            still, out = tool.work / "still.pth", tool.work / "inflated.pth"
            torch.save(zeroed, still)
            tool.run("convert", still, "--to", "videomae", "--inflate", text, "-o", out, "--force")
            wanted = torch.stack([state[PATCHES] * part for part in how], dim=2)
            families.near(load(out)[PATCHES], wanted, PATCHES, TOLERANCE)
    refusals = {
        "--inflate for timm": (["--inflate", "2"], "--to videomae"),
        "another number of classes": (["--num-classes", 7], "--head zero"),
        "--tubelet for images": (["--tubelet", "sum"], "[384, 3, 16, 16]"),
        "a grid that does not fit": (["--grid", "3x5", "--img-size", 224], "--grid"),
    }
    for name, (args, text) in refusals.items():
        with report.check(f"refused: {name}"):
            done = tool.start("convert", path, "--to", "timm", *args, "-o", tool.work / "refused.pth")
            equal(done.returncode, 2, "the exit code")
            expect(text in done.stderr, f"{text!r} is not in {done.stderr}")


def probe(tool, state):
    """MAE's head for linear probes."""
    torch.manual_seed(9)
    norm, linear = torch.nn.BatchNorm1d(384, affine=False, eps=1e-6), torch.nn.Linear(384, 5)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    head = torch.nn.Sequential(norm, linear).eval()
    given = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    given |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    path = tool.work / "probe.pth"
    torch.save({"model": given}, path)
    found = converted(tool, path)
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(3)).double()
    with torch.inference_mode():
        wanted = head.double()(x)
        # Of sums over 384 features.
        families.near(x @ found["head.weight"].double().T + found["head.bias"], wanted, "the logits", 1e-5)
        weight = linear.weight / (norm.running_var + norm.eps).sqrt()[None]
        families.near(found["head.weight"], weight, "the weight", TOLERANCE)
        families.near(found["head.bias"], linear.bias - weight @ norm.running_mean, "the bias", TOLERANCE)


def tiny(tool, **more):
    """A model of timm, saved."""
    torch.manual_seed(31)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **more)
    path = tool.work / "tiny.pth"
    torch.save(model.state_dict(), path)
    return path, model


def digits(_tool):
    """The fixtures' model, which timm knows by no name."""
    model = models.digits()
    path = FIXTURES / "mnist_vit.pth"
    loaded = torch.load(path, map_location="cpu", weights_only=False)
    model.load_state_dict(loaded.get("model", loaded))
    return path, model, "--heads", 4


def clip(tool):
    """A CLIP: a norm before the blocks, no bias of the patches, quick GELU."""
    torch.manual_seed(32)
    model = timm.create_model("vit_base_patch32_clip_quickgelu_224", num_classes=512)
    path = tool.work / "clip.safetensors"
    save_file(model.state_dict(), path)
    return path, model, "--arch", "vit_base_patch32_clip_quickgelu_224"


LABELS = [f"class number {number}, ä" for number in range(7)]


def labels(tool):
    """A file of them."""
    path = tool.work / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    return path


FOLDERS = {
    "of vit_tiny_patch16_224": lambda tool: tiny(tool),
    "of its fixture": digits,
    "of a CLIP": clip,
    "of another image size and number of channels": lambda tool: (
        *tiny(tool, img_size=(160, 256), in_chans=2),
        "--arch",
        "vit_tiny_patch16_224",
        "--img-size",
        "160x256",
        "--grid",
        "10x16",
    ),
    "with the names of the classes": lambda tool: (*tiny(tool), "--labels", labels(tool)),
    "of average pooling": lambda tool: tiny(tool, global_pool="avg", fc_norm=True),
}


def folder(tool, name, path, model, *args):
    """One folder."""
    out = tool.work / name
    tool.run("convert", path, "--timm-dir", out, *args)
    equal(sorted(file.name for file in out.iterdir()), ["config.json", "model.safetensors"], "the files")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    opened = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    size = model.patch_embed.img_size
    x = torch.randn(2, model.patch_embed.proj.in_channels, *size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        wanted = model.eval()(x)
        families.near(opened(x), wanted, "the output", 1e-5)
    expect(wanted.std() > 1e-3, "the output says nothing")
    equal(opened.pretrained_cfg.get("label_names"), LABELS if "--labels" in args else None, "the names of the classes")
    data, given = resolve_model_data_config(opened), config["pretrained_cfg"]
    equal(tuple(data["input_size"]), (x.shape[1], *size), "the input size")
    for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        wanted = tuple(given[key]) if isinstance(given[key], list) else given[key]
        equal(tuple(data[key]) if isinstance(data[key], list) else data[key], wanted, key)
    equal(len(data["mean"]), x.shape[1], "the number of means")
    same_state(dict(sorted(load_file(out / "model.safetensors").items())), dict(sorted(model.state_dict().items())))
