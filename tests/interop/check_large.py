"""Seeded ViT-B models: identical bits and logits, damage that is found, and how much memory and time a fold takes."""

import subprocess
import time
import zipfile

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
        if suffix == ".pth":
            with report.check("the checksums in ViT-B/16 folded to .pth are those of zlib"):
                wrong = zipfile.ZipFile(path).testzip()
                expect(wrong is None, f"that of {wrong} is not")
        with report.check(f"timm.create_model(checkpoint_path={path.name!r}) gives the logits of PyTorch's fold"):
            found = run(timm.create_model(models.LARGE, checkpoint_path=path))
            gap = (found - logits).abs().max().item()
            expect(torch.equal(found, logits), f"logits are off by {gap}")


    # A tensor of several units of work, and a bit in each of the first, one between, and the last.
    entry = largest(source)
    for place in (0, entry.file_size // 3, entry.file_size - 1):
        with report.check(f"ViT-B/16 with a damaged bit in byte {place} of a tensor is refused, wherever it is"):
            broken, name = damaged(source, tool.work / "broken.pth", place)
            broken_aux, aux_name = damaged(other, tool.work / "broken_aux.pth", place)
            folds = (
                (broken, other, broken, name),
                (source, broken_aux, broken_aux, aux_name),
                (broken, broken_aux, broken, name),
                (broken, broken, broken, name),
            )
            for first, second, wrong, tensor in folds:
                done = tool.start("fold", first, "--aux", second, "--lambda", "0.1", "-o", tool.work / "none.pth")
                words = (str(wrong), tensor, "is damaged")
                expect(done.returncode == 2 and all(word in done.stderr for word in words), done.stderr)
                expect(not (tool.work / "none.pth").exists(), "there is an output")


def largest(path):
    """The first of the largest entries of an archive."""
    with zipfile.ZipFile(path) as archive:
        return max(archive.infolist(), key=lambda entry: (entry.file_size, -entry.header_offset))


def damaged(path, copy, place):
    """A copy with a bit flipped in a byte of its largest entry, and the entry's name."""
    entry, data = largest(path), bytearray(path.read_bytes())
    names = int.from_bytes(data[entry.header_offset + 26 : entry.header_offset + 28], "little")
    extra = int.from_bytes(data[entry.header_offset + 28 : entry.header_offset + 30], "little")
    data[entry.header_offset + 30 + names + extra + place] ^= 4
    copy.write_bytes(data)
    return copy, entry.filename


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
