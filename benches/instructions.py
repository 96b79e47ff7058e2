"""Instructions that the program executes, counted by Callgrind, beside those of benches/instructions.json.

    python benches/instructions.py --binary target/release/m2pt-surgery [--update]

Times differ from run to run and machine to machine; these counts hardly do. It prints a table and fails for nothing but a program that fails. On
one thread; Valgrind has no AVX-512, so that kernels run as AVX2.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
BASELINE = ROOT / "benches" / "instructions.json"
VIT, SPEECH = FIXTURES / "mnist_vit.pth", FIXTURES / "speech_vit.pth"
FOLD = ["fold", VIT, "--aux", SPEECH, "--lambda", "0.1", "--threads", "1", "--no-sync", "-o"]
HALF = ["fold", FIXTURES / "mnist_vit_bf16.pth", *FOLD[2:]]
CASES = {
    "start (--version)": ["--version"],
    "open a .pth, list its tensors": ["inspect", VIT],
    "open a .safetensors, list its tensors": ["inspect", FIXTURES / "mnist_vit.safetensors"],
    "open a legacy file": ["inspect", FIXTURES / "torch_files" / "legacy.pth"],
    "open a JAX .npz": ["inspect", FIXTURES / "families" / "jax_vit.npz"],
    "statistics of 1.2 MB": ["inspect", VIT, "--stats"],
    "SHA-256 of 1.2 MB": ["inspect", VIT, "--hash"],
    "scan a .pth": ["scan", VIT],
    "fold .pth to .pth, float32": [*FOLD, "out.pth"],
    "fold .pth to .safetensors, float32": [*FOLD, "out.safetensors"],
    "fold .pth to .pth, bfloat16": [*HALF, "out.pth"],
    "convert .pth to .safetensors": ["convert", VIT, "--threads", "1", "--no-sync", "-o", "out.safetensors"],
}


def count(binary, arguments):
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return int(found[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=ROOT / "target" / "release" / "m2pt-surgery", type=Path)
    parser.add_argument("--update", action="store_true", help="make these counts the ones to compare with")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        raise SystemExit("NOT COUNTED: there is no valgrind; apt-get install valgrind")
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    counts = {}
    print("| | million instructions | before | ratio |\n| --- | --- | --- | --- |")
    for name, case in CASES.items():
        counts[name] = count(str(arguments.binary.resolve()), case)
        before = baseline.get(name)
        ratio = f"{before / 1e6:.2f} | {counts[name] / before:.3f}" if before else "- | -"
        print(f"| {name} | {counts[name] / 1e6:.2f} | {ratio} |", flush=True)
    if arguments.update:
        BASELINE.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
