"""Small architectures of every kind compute what timm computes: the part of the parity table that takes seconds."""

import parity
from report import expect

# Every kind of block, MLP, pooling, normalisation and token.
NAMES = (
    "test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_tiny_patch16_224", "vit_tiny_patch16_384",
    "vit_xsmall_patch16_clip_224", "vit_small_patch32_224", "vit_wee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256",
    "vit_little_patch16_reg1_gap_256", "vit_medium_patch16_gap_240", "vit_base_patch32_224",
    "vit_base_patch32_clip_quickgelu_224", "vit_base_patch32_siglip_256", "vit_small_patch14_reg4_dinov2",
)
# Models whose heads, function or pooling no weight tells from another architecture's.
AMBIGUOUS = ("vit_base_patch32_clip_quickgelu_224",)


def main(report, tool):
    """One check for each: as its name says, on another size of image, and without the name."""
    for row in parity.rows(tool, NAMES):
        with report.check(f"{row['name']}: logits are timm's"):
            worst = max(row["difference"], row["other"] or 0.0)
            expect(worst < parity.TOLERANCE, f"they are off by {worst:.1e}")
            if row["untold"] is not None and row["name"] not in AMBIGUOUS:
                expect(row["untold"] < parity.TOLERANCE, f"without the name they are off by {row['untold']:.1e}")
