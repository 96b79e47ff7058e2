"""The small half of timm's architectures compute what timm computes: `parity.py` runs them all."""

import json

import parity
from report import expect
from tool import ROOT

# Every kind of block, MLP, pooling, normalisation and token: also on another size of image, and without the name.
THOROUGHLY = (
    "test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_tiny_patch16_224", "vit_tiny_patch16_384",
    "vit_xsmall_patch16_clip_224", "vit_small_patch32_224", "vit_wee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256",
    "vit_little_patch16_reg1_gap_256", "vit_medium_patch16_gap_240", "vit_base_patch32_224",
    "vit_base_patch32_clip_quickgelu_224", "vit_base_patch32_siglip_256", "vit_small_patch14_reg4_dinov2",
)
# Models whose heads, function or pooling no weight tells from another architecture's.
AMBIGUOUS = ("vit_base_patch32_clip_quickgelu_224",)


def small_half():
    """The smaller half of the names, by the products of their linear layers."""
    entries = json.loads((ROOT / "src/model/timm.json").read_text())["architectures"]
    size = {name: entry["arguments"] for name, entry in entries.items()}
    cost = {name: a.get("depth", 12) * a.get("embed_dim", 768) ** 2 * a["img_size"] ** 2 / a.get("patch_size", 16) ** 2
            for name, a in size.items()}
    return sorted(cost, key=cost.get)[: len(cost) // 2]


def main(report, tool):
    """One check for each."""
    for row in parity.rows(tool, THOROUGHLY):
        with report.check(f"{row['name']}: logits are timm's"):
            worst = max(row["difference"], row["other"] or 0.0)
            expect(worst < parity.TOLERANCE, f"they are off by {worst:.1e}")
            if row["untold"] is not None and row["name"] not in AMBIGUOUS:
                expect(row["untold"] < parity.TOLERANCE, f"without the name they are off by {row['untold']:.1e}")
    for name in small_half():
        if name not in THOROUGHLY:
            with report.check(f"{name}: logits are timm's"):
                difference = parity.compare(tool, name)[0]
                expect(difference < parity.TOLERANCE, f"they are off by {difference:.1e}")
