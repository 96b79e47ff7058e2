"""Grafts against a re-parameterised module, and the paper's four models at full size."""

import subprocess
import sys
import time

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import families
import models
import reference
from report import equal, expect
from tensors import load, same_state
from tool import FIXTURES

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 5}
WIDTH = 768


class Reparameterised(torch.nn.Linear):
    """y = x (W + s A)^T + b, where A and s are trained as well."""

    def __init__(self, like):
        super().__init__(like.in_features, like.out_features, like.bias is not None)
        self.aux_weight = torch.nn.Parameter(torch.zeros_like(like.weight))
        self.cross_modal_scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        """One matrix of the sum."""
        weight = self.weight + self.cross_modal_scale * self.aux_weight
        return torch.nn.functional.linear(x, weight, self.bias)


def trainable():
    """A small ViT whose linear layers are re-parameterised."""
    model = VisionTransformer(**ARGS)
    for block in model.blocks:
        for name in LAYERS:
            module, leaf = name.split(".")
            setattr(getattr(block, module), leaf, Reparameterised(getattr(getattr(block, module), leaf)))
    return model.eval()


def main(report, tool):
    """Small grafts of several families, then the full size."""
    target = FIXTURES / "families" / "timm.safetensors"
    state = load(target)
    plain = VisionTransformer(**ARGS).eval()
    x = families.outputs()["inputs/image"]
    plain.load_state_dict(state, strict=True)
    with torch.inference_mode():
        logits = plain(x)
    entries = families.entries()
    for name in ("mae_pretrain", "audiomae_finetune", "hf_vit", "hf_videomae", "pointmae_pretrain", "jax_vit", "jax_siglip"):
        entry = entries[name]
        aux = ("--aux", families.path(entry), *(("--aux-root", entry["root"]) if entry["root"] else ()))
        with report.check(f"graft {name}: loads strictly into re-parameterised layers; a scale of 0 changes nothing"):
            grafted = graft(tool, target, aux, "0")
            found = load(grafted)
            model = trainable()
            equal(sorted(found), sorted(model.state_dict()), "the names")
            model.load_state_dict(found, strict=True)
            with torch.inference_mode():
                expect(torch.equal(model(x), logits), "the logits are others")
            same_state(load(tool.fold(grafted, "--force", out="folded.safetensors")), state)
        with report.check(f"graft {name} --lambda 0.37: computes what the fold does, and folds to its bits"):
            grafted = graft(tool, target, aux, "0.37")
            model.load_state_dict(load(grafted), strict=True)
            wanted = load(tool.fold(target, *aux, "--lambda", "0.37", "--force", out="wanted.safetensors"))
            plain.load_state_dict(wanted, strict=True)
            with torch.inference_mode():
                families.near(model(x), plain(x), "the logits")
            for suffix in (".pth", ".safetensors"):
                same_state(load(tool.fold(grafted, "--force", out=f"folded{suffix}")), wanted)
    full(report, tool)


def graft(tool, target, aux, scale):
    """The file of a graft."""
    out = tool.work / "grafted.pth"
    tool.run("graft", target, *aux, "--lambda", scale, "--force", "-o", out)
    return out


def seeded(seed):
    """A source of small normal values."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 0.02


def blocks(normal, prefix, biases):
    """Twelve blocks; `biases` is 'one' (timm), 'two' (VideoMAE) or 'none' (Point-MAE)."""
    state = {}
    for number in range(12):
        at = f"{prefix}.{number}"
        for name, shape in (("attn.qkv", (3 * WIDTH, WIDTH)), ("attn.proj", (WIDTH, WIDTH)),
                            ("mlp.fc1", (4 * WIDTH, WIDTH)), ("mlp.fc2", (WIDTH, 4 * WIDTH))):
            state[f"{at}.{name}.weight"] = normal(*shape)
            if name != "attn.qkv" or biases == "one":
                state[f"{at}.{name}.bias"] = normal(shape[0])
        if biases == "two":
            state |= {f"{at}.attn.q_bias": normal(WIDTH), f"{at}.attn.v_bias": normal(WIDTH)}
        for norm in ("norm1", "norm2"):
            state |= {f"{at}.{norm}.weight": 1 + normal(WIDTH), f"{at}.{norm}.bias": normal(WIDTH)}
    return state


def norm(normal, name):
    """A last norm."""
    return {f"{name}.weight": 1 + normal(WIDTH), f"{name}.bias": normal(WIDTH)}


def four(tool):
    """The files of the paper's four families, with the options that make them ViT-B/16 of images."""
    torch.manual_seed(40)
    image = models.plain(timm.create_model("vit_base_patch16_224"))
    head = {name: image.pop(name) for name in ("head.weight", "head.bias")}
    normal = seeded(41)
    decoder = {"mask_token": normal(1, 1, 512), "decoder_embed.weight": normal(512, WIDTH), "decoder_embed.bias": normal(512),
               "decoder_pos_embed": normal(1, 197, 512)}
    audio = {"cls_token": normal(1, 1, WIDTH), "pos_embed": normal(1, 513, WIDTH),
             "patch_embed.proj.weight": normal(WIDTH, 1, 16, 16), "patch_embed.proj.bias": normal(WIDTH),
             **blocks(normal, "blocks", "one"), **norm(normal, "fc_norm"),
             "head.weight": normal(527, WIDTH), "head.bias": normal(527)}
    video = {"patch_embed.proj.weight": normal(WIDTH, 3, 2, 16, 16), "patch_embed.proj.bias": normal(WIDTH),
             **blocks(normal, "blocks", "two"), **norm(normal, "fc_norm"),
             "head.weight": normal(400, WIDTH), "head.bias": normal(400)}
    points = {**blocks(normal, "module.MAE_encoder.blocks.blocks", "none"), **norm(normal, "module.MAE_encoder.norm"),
              "module.MAE_encoder.pos_embed.0.weight": normal(128, 3), "module.mask_token": normal(1, 1, WIDTH)}
    donor = tool.work / "full_donor.pth"
    torch.save(image | head, donor)
    fill, own = ("--fill-from", donor), ("--head", "drop")
    token = ("--global-pool", "token", *own)
    files = {
        "image": ("model", image | decoder, fill),
        "audio": ("model", audio, ("--grid", "64x8", "--in-chans", 3, "--channels", "sum", "--img-size", 224, *token)),
        "video": ("module", video, ("--tubelet", "sum", "--img-size", 224, *token, "--fill-from", donor)),
        "points": ("base_model", points, (*fill, *own)),
    }
    for name, (root, state, options) in files.items():
        path = tool.work / f"full_{name}.pth"
        torch.save({root: state, "epoch": 3}, path)
        yield name, path, state, options


def full(report, tool):
    """Four checkpoints become four ViT-B/16; three are folded into the first."""
    converted, x = {}, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    source = None
    for name, path, state, options in four(tool):
        source = source or path
        with report.check(f"ViT-B/16 of the {name} family: loads strictly into vit_base_patch16_224"):
            out = tool.work / f"full_{name}.timm.pth"
            args = ("convert", path, "--to", "timm", "--arch", "vit_base_patch16_224", *options, "-o", out)
            seconds, peak = tool.measured(*args)
            report.note(f"{out.stat().st_size / 1e6:.0f} MB in {seconds:.2f} s, {peak / 2**20:.0f} MiB of anonymous memory")
            expect(peak < 96 << 20, f"the peak is {peak / 2**20:.0f} MiB")
            converted[name] = load(out)
            classes = 1000 if name == "image" else 0
            model = timm.create_model("vit_base_patch16_224", num_classes=classes)
            model.load_state_dict(converted[name], strict=True)
            for key, tensor in state.items():
                if key.endswith("attn.qkv.weight"):
                    expect(torch.equal(converted[name][key[key.rindex("blocks.") :]], tensor), f"{key} is another")
    image = tool.work / "full_image.timm.pth"
    for name in ("audio", "video", "points"):
        with report.check(f"ViT-B/16 of images with that of {name} folded in: timm runs it; the original file folds to the same"):
            out = tool.fold(image, "--aux", tool.work / f"full_{name}.timm.pth", "--lambda", "0.1", out="full_fold.pth", *["--force"])
            wanted = reference.fold(converted["image"], [(converted[name], reference.constant(0.1))])
            same_state(load(out), wanted)
            model = timm.create_model("vit_base_patch16_224", checkpoint_path=out).eval()
            with torch.inference_mode():
                expect(model(x).isfinite().all(), "the logits are not finite")
            out = tool.fold(image, "--aux", tool.work / f"full_{name}.pth", "--lambda", "0.1", "--force", out="full_fold.pth")
            same_state(load(out), wanted)
    with report.check("the same conversion by a script of torch: time and memory beside"):
        script(report, tool, source)


def script(report, tool, source):
    """load, drop, save: what a conversion of the image model amounts to."""
    code = (
        "import sys, torch\n"
        "state = torch.load(sys.argv[1], weights_only=True)['model']\n"
        "state = {k: v for k, v in state.items() if not k.startswith(('mask_token', 'decoder_'))}\n"
        "torch.save(state, sys.argv[2])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))\n"
    )
    args = ["convert", source, "--to", "timm", "-o", tool.work / "beside.pth"]
    seconds, peak = tool.measured(*args)
    start = time.monotonic()
    command = [sys.executable, "-c", code, source, tool.work / "script.pth"]
    most = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    other = time.monotonic() - start
    report.note(f"program {seconds:.2f} s, {peak / 2**20:.0f} MiB anonymous; torch {other:.2f} s, {most / 2**20:.0f} MiB resident")
    found, wanted = load(tool.work / "beside.pth"), load(tool.work / "script.pth")
    same_state(found, wanted)
