"""`learn` and timm: the fold of what was learned predicts the same in both, sample by sample."""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from report import equal, expect
from tool import FIXTURES

DIGITS = ("--samples", FIXTURES / "mnist", "--config", FIXTURES / "digits.json")


@torch.inference_mode()
def logits(path, names):
    """What timm computes of these images of fixtures/mnist."""
    model = VisionTransformer(
        img_size=32, patch_size=4, in_chans=3, num_classes=10, embed_dim=64, depth=6, num_heads=4
    ).eval()
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    files = [FIXTURES / "mnist" / name for name in names]
    images = [Image.open(f).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for f in files]
    inputs = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float()
    return model((inputs / 255 - 0.5) / 0.5).numpy()


def same_as_timm(tool, merged, saved, *more):
    """What verify predicts of every sample is what timm predicts."""
    tool.run("verify", merged, *DIGITS, "--save-logits", saved, *more)
    with np.load(saved) as arrays:
        theirs = logits(merged, arrays["samples"].tolist())
        equal(arrays["logits"].argmax(1).tolist(), theirs.argmax(1).tolist(), "the predictions")
        gap = np.abs(arrays["logits"] - theirs).max()
        expect(gap < 1e-4, f"logits are off by {gap}")


def main(report, tool):
    """Learn, fold, and run on both sides."""
    lambdas, merged, saved = tool.work / "learn.json", tool.work / "learn.pth", tool.work / "learn.npz"
    with report.check("the fold of learned lambdas predicts the same in verify and in timm"):
        target, aux = FIXTURES / "mnist_early.pth", FIXTURES / "speech_vit.pth"
        command = ("learn", target, "--aux", aux, *DIGITS, "-o", lambdas, "--fold", merged, "--accept", "--json")
        learned = json.loads(tool.start(*command).stdout)
        again = tool.work / "learn_again.pth"
        tool.run("fold", target, "--aux", aux, "--lambda-file", lambdas, "-o", again)
        equal(again.read_bytes(), merged.read_bytes(), "the file of learn --fold")
        equal(json.loads(lambdas.read_text(encoding="utf-8")), learned["lambdas"][0], "the lambdas")
        same_as_timm(tool, merged, saved)

    with report.check("the fold of learned lambdas, head and norms predicts the same in verify and in timm"):
        trained, again = tool.work / "learn_trained.safetensors", tool.work / "learn_trained_again.pth"
        lambdas, merged = tool.work / "learn_trained.json", tool.work / "learn_trained.pth"
        more = ("--train-head", "--train-norms", "--tensors", trained, "--epochs", "5")
        command = ("learn", target, "--aux", aux, *DIGITS, "-o", lambdas, *more, "--fold", merged, "--accept", "--json")
        learned = json.loads(tool.start(*command).stdout)
        tool.run("fold", target, "--aux", aux, "--lambda-file", lambdas, "--replace", trained, "-o", again)
        equal(again.read_bytes(), merged.read_bytes(), "the file of learn --fold")
        parameters = load_file(trained)
        equal(sorted(parameters), sorted(learned["trained"]), "the trained parameters")
        state = torch.load(merged, weights_only=True)
        expect(all(torch.equal(state[name], tensor) for name, tensor in parameters.items()), "a parameter is another one")
        same_as_timm(tool, merged, saved, "--force")
