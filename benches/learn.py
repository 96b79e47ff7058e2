"""Steps of `learn` beside the same loop in PyTorch, by turns in one run: the table of docs/learning.md.

    python benches/learn.py --binary target/release/m2pt-surgery [--models digits tiny small half base] [--batch 8] [--rounds 3] [--recompute]

A step is W + lambda W' in each linear layer, forward, cross-entropy, backward to the lambdas, AdamW; everything but the lambdas is frozen on
both sides, and both use all cores. `half` is `small` with half of its blocks. --recompute: with --checkpoint-activations here. Seconds are medians of the rounds, of the steps alone: without start-up, reading and evaluation. Memory is the
highest resident memory of the process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = {
    "digits": {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 10},
    "tiny": {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3, "num_classes": 10},
    "half": {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 6, "num_heads": 6, "num_classes": 10},
    "small": {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "num_classes": 10},
    "base": {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "num_classes": 10},
}

MAKE = """
import json, sys, numpy as np, torch
from timm.models.vision_transformer import VisionTransformer
folder, options, samples = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
for seed, name in enumerate(("target", "aux")):
    torch.manual_seed(seed)
    torch.save(VisionTransformer(**options).state_dict(), f"{folder}/{name}.pth")
size = options["img_size"]
images = np.random.default_rng(0).normal(size=(samples, 3, size, size)).astype(np.float32)
np.savez(f"{folder}/samples.npz", inputs=images, labels=np.arange(samples) % 10)
"""

LOOP = """
import json, resource, sys, time, numpy as np, torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch.func import functional_call
folder, options, batch, steps = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model = VisionTransformer(**options).eval().requires_grad_(False)
model.load_state_dict(torch.load(f"{folder}/target.pth", weights_only=True))
aux = torch.load(f"{folder}/aux.pth", weights_only=True)
names = [n for n, _ in model.named_parameters() if n.endswith(("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"))]
data = np.load(f"{folder}/samples.npz")
inputs, labels = torch.from_numpy(data["inputs"]), torch.from_numpy(data["labels"])
lambdas = torch.zeros(len(names), requires_grad=True)
optimizer = torch.optim.AdamW([lambdas], lr=0.002)
taken = 0.0
for step in range(steps):
    part = torch.arange(step * batch, (step + 1) * batch) % len(labels)
    begin = time.perf_counter()
    folded = {n: model.get_parameter(n) + scale * aux[n] for n, scale in zip(names, lambdas)}
    loss = F.cross_entropy(functional_call(model, folded, (inputs[part],)), labels[part])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([lambdas], 1.0)
    optimizer.step()
    taken += time.perf_counter() - begin
print(json.dumps({"step": taken / steps, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def run(command):
    """Standard output, and the child's peak of resident memory in MiB."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode not in (0, 1):
            raise SystemExit(f"{command}: {child.stderr.read()}")
    return text, usage.ru_maxrss / 1024


def ours(binary, folder, options, batch, more):
    config = folder / "config.json"
    config.write_text(json.dumps({"architecture": "vit", "model_args": options, "num_classes": 10, "pretrained_cfg": {
        "input_size": [3, options["img_size"], options["img_size"]], "mean": [0, 0, 0], "std": [1, 1, 1]}}))
    output = folder / "lambda.json"
    command = [binary, "learn", str(folder / "target.pth"), "--aux", str(folder / "aux.pth"), "--samples", str(folder / "samples.npz")]
    command += ["--heads", str(options["num_heads"]), "--epochs", "1", "--batch", str(batch), "-o", str(output), "--force", "--json"]
    # Of the samples half are fitted; the others only take time.
    command += ["--held-out", "0.25", "--stop-part", "0.34", *more]
    text, memory = run(command)
    report = json.loads(text)
    return report["seconds_of_steps"] / report["steps"], memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/m2pt-surgery")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recompute", action="store_true")
    arguments = parser.parse_args()
    more = ["--checkpoint-activations"] if arguments.recompute else []
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")]
    print(f"{model[0] if model else platform.machine()}, {os.cpu_count()} cores")
    print("| model | batch | step here | step in PyTorch | ratio | memory here | PyTorch |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        options = MODELS[name]
        for batch in arguments.batch:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                # Two steps here, of which the buffers of the second are those of the first; many of the small model.
                count = 4 * batch if name != "digits" else 64 * batch
                make = [sys.executable, "-c", MAKE, temporary, json.dumps(options), str(max(40, count))]
                subprocess.run(make, check=True)
                rounds = []
                for _ in range(arguments.rounds):
                    here = ours(arguments.binary, folder, options, batch, more)
                    steps = 4 if name != "digits" else 40
                    text, _ = run([sys.executable, "-c", LOOP, temporary, json.dumps(options), str(batch), str(steps)])
                    rounds.append((here, json.loads(text)))
                here = statistics.median(h[0] for h, _ in rounds)
                there = statistics.median(t["step"] for _, t in rounds)
                ratio = statistics.median(h[0] / t["step"] for h, t in rounds)
                memory = max(h[1] for h, _ in rounds), max(t["memory"] for _, t in rounds)
                print(
                    f"| {name}, {options['embed_dim']} wide | {batch} | {here:.4f} s | {there:.4f} s | {ratio:.2f} "
                    f"| {memory[0]:.0f} MiB | {memory[1]:.0f} MiB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
