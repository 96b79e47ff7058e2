"""Seeded ViT-B models: identical bits and logits, and how much memory and time a fold takes."""

import subprocess
import time

import timm
import torch

import models
import reference
from report import expect
from tensors import load, same_state

MEMORY = 64 << 20


def main(report, tool):
    """Save an image and an audio model, fold one into the other, run the result."""
    torch.manual_seed(1)
    target = models.plain(timm.create_model(models.LARGE, pretrained=False))
    aux = models.plain(models.audio_large())
    source, other = tool.work / "image.pth", tool.work / "audio.pth"
    torch.save(target, source)
    torch.save({"model": aux, "epoch": 31}, other)
    wanted = reference.fold(target, [(aux, reference.constant(0.1))])
    logits = run(timm.create_model(models.LARGE, pretrained=False), wanted)
    copied = copy_seconds(source, tool.work / "copy.pth")

    for suffix in (".pth", ".safetensors"):
        path = tool.work / f"large{suffix}"
        with report.check(f"ViT-B/16 fold to {suffix} takes less than {MEMORY >> 20} MiB of anonymous memory"):
            seconds, peak = tool.measured("fold", source, "--aux", other, "--lambda", "0.1", "-o", path)
            report.note(f"peak anonymous memory {peak / 2**20:.1f} MiB, wall {seconds:.2f} s, cp {copied:.2f} s")
            expect(peak < MEMORY, f"the peak is {peak / 2**20:.1f} MiB")
        with report.check(f"ViT-B/16 fold to {suffix} has PyTorch's bits"):
            same_state(load(path), wanted)
            if suffix == ".pth":
                same_state(load(path, mmap=True), wanted)
        with report.check(f"timm.create_model(checkpoint_path={path.name!r}) gives the logits of PyTorch's fold"):
            found = run(timm.create_model(models.LARGE, checkpoint_path=path))
            gap = (found - logits).abs().max().item()
            expect(torch.equal(found, logits), f"logits are off by {gap}")


@torch.inference_mode()
def run(model, state=None):
    """Logits of one random input."""
    if state is not None:
        model.load_state_dict(state, strict=True)
    generator = torch.Generator().manual_seed(3)
    return model.eval()(torch.randn(1, 3, 224, 224, generator=generator))


def copy_seconds(source, copy):
    """How long `cp` takes for a file."""
    start = time.monotonic()
    subprocess.run(["cp", "--reflink=never", source, copy], check=True)
    seconds = time.monotonic() - start
    copy.unlink()
    return seconds
