"""`verify` against timm: a ViT-B/16 and its fold, logits in NumPy's archives."""

import json

import numpy as np
import timm
import torch
from safetensors.torch import load_file

from report import equal, expect
from tool import EXPECTED, FIXTURES

DIGITS = ("--samples", FIXTURES / "mnist", "--config", FIXTURES / "digits.json")
ARCHITECTURE = "vit_base_patch16_224"
LAMBDA = 0.1


def verify(tool, *args, code=0):
    """What `verify --json` says."""
    return json.loads(tool.run("verify", "--json", *args, code=code))


@torch.inference_mode()
def base(work):
    """A ViT-B/16, another one as its auxiliary, and what timm computes of the first; the files."""
    files = {name: work / f"verify_{name}.pth" for name in ("target", "aux")}
    for seed, (name, path) in enumerate(files.items()):
        torch.manual_seed(seed)
        model = timm.create_model(ARCHITECTURE, pretrained=False).eval()
        # Heads begin as zeros, which every input has the same logits of.
        torch.nn.init.normal_(model.head.weight, std=0.1)
        torch.save(model.state_dict(), path)
        if name == "target":
            inputs = torch.randn(6, 3, 224, 224)
            logits = model(inputs)
    np.savez_compressed(work / "verify_reference.npz", inputs=inputs.numpy(), logits=logits.numpy())
    return files["target"], files["aux"], work / "verify_reference.npz"


def main(report, tool):
    """Archives in both directions, and a large model."""
    wanted = load_file(EXPECTED / "logits.safetensors")
    saved = tool.work / "verify.npz"
    with report.check("NumPy reads the logits that verify saves"):
        verify(tool, FIXTURES / "mnist_vit.pth", *DIGITS, "--save-logits", saved)
        with np.load(saved) as arrays:
            equal(sorted(arrays), ["labels", "logits", "samples"], "the arrays")
            gap = np.abs(arrays["logits"] - wanted["target"].numpy()).max()
            expect(gap < 1e-4, f"logits are off by {gap}")
            equal(arrays["labels"].tolist(), wanted["labels"].tolist(), "the labels")
            images = [f"mnist/{name}" for name in arrays["samples"].tolist()]
        equal(images, json.loads((EXPECTED / "predictions.json").read_text(encoding="utf-8"))["images"], "the samples")
    for save, name in ((np.savez, "plain"), (np.savez_compressed, "compressed")):
        with report.check(f"verify reads logits from NumPy's archives: {name}"):
            path = tool.work / f"verify_{name}.npz"
            save(path, logits=wanted["target"].double().numpy())
            verify(tool, FIXTURES / "mnist_vit.pth", *DIGITS, "--reference", path)
            save(path, logits=wanted["early"].numpy())
            verify(tool, FIXTURES / "mnist_vit.pth", *DIGITS, "--reference", path, code=1)
    target, aux, reference = base(tool.work)
    with report.check(f"{ARCHITECTURE} computes what timm does"):
        found = verify(tool, target, "--arch", ARCHITECTURE, "--reference", reference)["reference"]
        report.note(f"relative difference {found['relative']:.1e}")
    merged = tool.fold(target, "--aux", aux, "--lambda", LAMBDA, out="verify_merged.pth")
    pathway = ("--arch", ARCHITECTURE, "--pathway", target, "--aux", aux, "--limit", 4, "--lambda")
    for dtype in ("f32", "f16", "bf16"):
        with report.check(f"{ARCHITECTURE}: a fold and its pathway, {dtype}"):
            found = verify(tool, merged, *pathway, LAMBDA, "--dtype", dtype)["pathway"]
            report.note(f"relative difference {found['relative']:.1e}, tolerance {found['tolerance']}")
    with report.check(f"{ARCHITECTURE}: a fold with another lambda is found"):
        found = verify(tool, merged, *pathway, LAMBDA * 1.01, code=1)["pathway"]
        equal(found["first_block"], 0, "the block where they part")
