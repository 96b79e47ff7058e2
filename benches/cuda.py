"""Folds on a GPU beside the processor and beside PyTorch on the same GPU: the table of docs/performance.md. Needs an NVIDIA GPU.

    python benches/cuda.py --binary target/release/m2pt-surgery [--size base|giant] [--device cuda:0] [--rounds 5] [--folder DIR]

Every output of the GPU is compared with that of the processor, byte by byte, and the first difference ends the bench. Times of the program
are those of whole commands, `--no-sync`, the start of the driver included (the first row: a fold of next to nothing); those of PyTorch begin when
it is imported and its own context is there: load both files, `.cuda()`, add, `.cpu()`, save. Inputs are in the page cache, and outputs are new
files. GB/s count the bytes of all inputs and of the output.
"""

import argparse
import filecmp
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import MAKE, SIZES, processor

TORCH = """
import sys, time, torch
device, output, target, *aux = sys.argv[1:]
torch.ones(1, device=device).add(1).cpu()
start = time.perf_counter()
load = lambda path: torch.load(path, mmap=True, weights_only=True)
target, aux = load(target), [load(path) for path in aux]
layers = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
for key, value in target.items():
    if key.endswith(layers):
        value = value.to(device)
        for other in aux:
            value = value + 0.1 * other[key].to(device)
        target[key] = value.cpu()
torch.save(target, output)
print(time.perf_counter() - start)
"""


def run(command):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    return time.perf_counter() - start, done.stdout + done.stderr


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, Path(folder)

    def files(self, names):
        return [str(self.folder / name) for name in names]

    def fold(self, device, names, output, more=()):
        target, *aux = self.files(names)
        command = [str(self.options.binary.resolve()), "fold", target, "--lambda", "0.1", *more]
        command += [word for path in aux for word in ("--aux", path)]
        output.unlink(missing_ok=True)
        took, text = run([*command, "--no-sync", "--device", device, "-o", str(output)])
        if device != "cpu" and f", {device})" not in text:
            raise SystemExit(f"the GPU did not compute all of it: {text}")
        return took

    def torch(self, names, output):
        output.unlink(missing_ok=True)
        return float(run([sys.executable, "-c", TORCH, self.options.device, str(output), *self.files(names)])[1])

    def row(self, what, names, more=(), peer=True):
        cpu, gpu, other = (self.folder / f"{name}.pth" for name in ("cpu_out", "gpu_out", "torch_out"))
        times = {"cpu": [], "gpu": [], "torch": []}
        for _ in range(self.options.rounds):
            times["cpu"].append(self.fold("cpu", names, cpu, more))
            times["gpu"].append(self.fold(self.options.device, names, gpu, more))
            if peer:
                times["torch"].append(self.torch(names, other))
            if not filecmp.cmp(cpu, gpu, shallow=False):
                raise SystemExit(f"{what}: {gpu} differs from {cpu}")
        gigabytes = (sum(os.path.getsize(path) for path in self.files(names)) + os.path.getsize(cpu)) / 1e9
        for path in (cpu, gpu, other):
            path.unlink(missing_ok=True)
        cells = []
        for seconds in times.values():
            median = statistics.median(seconds) if seconds else None
            cells.append(f"{median:.3f} s, {gigabytes / median:.2f} GB/s" if median else "")
        print(f"| {what} | {' | '.join(cells)} |", flush=True)

    def table(self):
        print(f"| | processor | {self.options.device} | PyTorch on {self.options.device} |\n| --- | --- | --- | --- |")
        self.row("the smallest fold", ["image.pth", "audio.pth"], ["--layers", "proj", "--blocks", "0"], peer=False)
        self.row("float32", ["image.pth", "audio.pth"])
        self.row("float32, three auxiliaries", ["image.pth", "audio.pth", "video.pth", "point.pth"])
        for name, short in (("bfloat16", "bf16"), ("float16", "f16")):
            self.row(name, [f"image_{short}.pth", f"audio_{short}.pth"])
        self.row("float32 to float64", ["image.pth", "audio.pth"], ["--dtype", "float64"], peer=False)
        for threads in (1, 2, 4, 8):
            self.row(f"float32, {threads} threads", ["image.pth", "audio.pth"], ["--threads", str(threads)], peer=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go, some 3 GB for each hundred million parameters")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the folder goes, too
    gpu = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,pcie.link.gen.current,pcie.link.width.current", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )
    print(f"{processor()}, {os.cpu_count()} processors; {gpu.stdout.strip()}; medians of {options.rounds}\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        subprocess.run([sys.executable, "-c", MAKE, SIZES[options.size], folder], check=True)
        Bench(options, folder).table()


if __name__ == "__main__":
    main()
