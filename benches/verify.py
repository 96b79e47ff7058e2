"""Images per second of `verify` beside timm on PyTorch's CPU build: seeded weights, batches and image sizes, in one run.

    python benches/verify.py --binary target/release/m2pt-surgery [--rounds 3] [--threads 2]

Both sides run by turns, and the best of the rounds counts: other load hits both alike. Preparing samples is not counted on either side;
that the program finds its mapped weights for the first time in every run is.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

CASES = [  # architecture, batch, image size (for the model as well)
    ("vit_base_patch16_224", 16, 224),
    ("vit_base_patch16_224", 1, 224),
    ("vit_base_patch16_224", 4, 224),
    ("vit_base_patch16_224", 32, 224),
    ("vit_base_patch16_224", 4, 112),
    ("vit_base_patch16_224", 4, 384),
]


def ours(binary, weights, samples, batch, threads):
    """Images per second of the program."""
    command = [binary, "verify", weights, "--samples", samples, "--batch", str(batch), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "RAYON_NUM_THREADS": str(threads)}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["run"]["images_per_second"]


@torch.inference_mode()
def theirs(model, inputs, batch):
    """Images per second of timm."""
    start = time.monotonic()
    for part in inputs.split(batch):
        model(part)
    return len(inputs) / (time.monotonic() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"timm {timm.__version__}, PyTorch {torch.__version__}, {options.threads} threads, best of {options.rounds}")
    print("| architecture | batch | image | timm, images/s | here, images/s | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, batch, size in CASES:
            model = timm.create_model(name, img_size=size).eval()
            weights, samples = f"{folder}/weights.safetensors", f"{folder}/samples.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, weights)
            inputs = torch.randn(max(4 * batch, 16), 3, size, size)
            save_file({"inputs": inputs}, samples)
            a, b = 0.0, 0.0
            for _ in range(options.rounds):
                a = max(a, theirs(model, inputs, batch))
                b = max(b, ours(options.binary, weights, samples, batch, options.threads))
            print(f"| `{name}` | {batch} | {size} | {a:.2f} | {b:.2f} | {b / a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
