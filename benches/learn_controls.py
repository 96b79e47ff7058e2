"""Controls for a learned fold: what does an auxiliary add that random weights of its size would not?

    python benches/learn_controls.py fixtures/speech_vit.pth controls/

Writes controls/random.pth (each matrix of qkv, proj, fc1 and fc2 normal noise of the same Frobenius norm) and controls/permuted.pth
(the same numbers, shuffled within each matrix). Everything else stays.
"""

import sys
from pathlib import Path

import torch

KINDS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def main():
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(source, map_location="cpu", weights_only=False)
    for key in ("model", "state_dict"):
        state = state.get(key, state)
    generator = torch.Generator().manual_seed(0)

    def random(weight):
        noise = torch.randn(weight.shape, generator=generator)
        return noise * (weight.norm() / noise.norm())

    def permuted(weight):
        return weight.flatten()[torch.randperm(weight.numel(), generator=generator)].reshape(weight.shape)

    for change in (random, permuted):
        control = {name: change(t) if name.endswith(KINDS) else t for name, t in state.items()}
        torch.save(control, folder / f"{change.__name__}.pth")


if __name__ == "__main__":
    main()
