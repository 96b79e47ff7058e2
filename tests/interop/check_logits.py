"""Folded checkpoints run in timm: logits and predictions on the committed digits."""

import json

import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

import cases
import models
from report import equal, expect
from tensors import load
from tool import EXPECTED, FIXTURES

TOLERANCE = 1e-4


def images():
    """(paths, inputs, labels) of the committed digits, preprocessed as for timm's evaluation."""
    transform = create_transform((3, 32, 32), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    paths = sorted((FIXTURES / "mnist").glob("*/*.png"), key=lambda path: (path.parent.name, path.name))
    inputs = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    labels = torch.tensor([int(path.parent.name) for path in paths])
    return [path.relative_to(FIXTURES).as_posix() for path in paths], inputs, labels


@torch.inference_mode()
def logits(state, inputs):
    """Logits of the digit model with the given weights."""
    model = models.digits().eval()
    model.load_state_dict(state, strict=True)
    return torch.cat([model(part) for part in inputs.split(130)])


def main(report, tool):
    """One check for each folded model with known logits."""
    wanted = load_file(EXPECTED / "logits.safetensors")
    predictions = json.loads((EXPECTED / "predictions.json").read_text(encoding="utf-8"))
    paths, inputs, labels = images()
    with report.check("the committed digits are those of the expected logits"):
        equal(paths, predictions["images"], "the list of images")
        expect(torch.equal(labels, wanted["labels"]), "labels differ")
    tenth = cases.named("lambda 0.1")
    outputs = {
        "folded_0.1": [cases.folded(tool, tenth, suffix) for suffix in cases.SUFFIXES],
        "folded_0.3": [tool.fold(*tenth["args"][:-1], "0.3", out="lambda_0.3.pth")],
        "pathway_folded": [cases.folded(tool, cases.named("learned"), ".pth")],
    }
    for name, files in outputs.items():
        for path in files:
            with report.check(f"timm runs {path.name} to the logits {name!r}"):
                found = logits(load(path), inputs)
                gap = (found - wanted[name]).abs().max().item()
                expect(gap <= TOLERANCE, f"logits are off by {gap}")
                equal(found.argmax(1).tolist(), predictions["predictions"][name], "what is predicted")
                equal(int((found.argmax(1) == labels).sum()), predictions["correct"][name], "right answers")
