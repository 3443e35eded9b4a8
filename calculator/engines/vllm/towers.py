"""The pass of the largest images through a vision tower, as steps: a block's attention and feed-forward beside what lives through all blocks.

Held against logs: Qwen2.5-VL 7B, 0.23, 114,688 tokens of one video: 15.3 GiB (text index 55021192520, where -14.28 GiB are left for the
cache); Qwen3.5's tower, 0.23, 16,384 tokens of one image: 1.9 GiB (fakoli/anvil-serving @5f4c763). Qwen2-VL's and SigLIP's weren't.
"""

from __future__ import annotations

from calculator.engines.vllm.images import Images
from calculator.steps import Buffer, Step
from calculator.units import ceil_div

TOWER_SOURCE = "vllm v0.19.0 model_executor/models/{qwen3_vl,qwen2_5_vl,qwen2_vl,siglip}.py; v0.11.0 and v0.14.0 the same"
VISION = "vision "  # first word of every step here
LOW_SHARE, HIGH_SHARE, UNHELD_HIGH_SHARE = 90, 110, 130  # of a pass that is the peak [percent]


def kept_outputs(images: Images, element_bytes: int) -> Buffer:
    """The embeddings of one batch, which stay while the text model is profiled."""
    return Buffer("image embeddings", element_bytes * images.kept * images.width, "{e} × {O} × {o}")


def symbols_of(images: Images) -> dict[str, int]:
    """What the formulas of the tower's steps are written in."""
    tower, t = images.tower, images.ranks
    return {"P": images.patches, "a": tower.hidden_size, "A": ceil_div(tower.hidden_size, t), "g": ceil_div(tower.intermediate_size, t), "O": images.kept, "o": images.width,
            "x": tower.in_channels * tower.temporal_patch_size * tower.patch_size**2, "u": tower.hidden_size // tower.num_heads, "U": images.rows, "D": images.width * tower.deep_layers // (1 + tower.deep_layers)}  # fmt: skip


def tower_steps(images: Images, element_bytes: int, workspace: Buffer) -> list[Step]:
    """The tower's steps on one rank.

    attention:      e P (2 a + 7 A + a) + e P x + ...          2 A less before 0.16, where queries and keys aren't copied
    rotary, 0.11:   e P (2 a + 8 A) + 16 P A + e P x + ...     queries and keys in float32 and turned
    feed-forward:   e P (3 a + 2 g) (Qwen3-VL), e P (5 a + 3 g) (Qwen2.5-VL), e P (4 a + 2 g) (SigLIP)

    P patches, a the tower's width and A its share of a rank, g the rank's share of the feed-forward, x elements of a patch's pixels.
    Locals and arguments of calls live on until they are assigned anew, as the hidden states of the caller do.

    Source: TOWER_SOURCE.
    """
    n = symbols_of(images)
    e, p, a, share, g, kind = element_bytes, n["P"], n["a"], n["A"], n["g"], images.tower.kind
    through = [Buffer("pixels", e * p * n["x"], "{e} × {P} × {x}")]
    if kind != "siglip":
        through.append(Buffer("rotary rows", e * p * n["u"], "{e} × {P} × {u}"))
    if kind == "qwen3_vl":
        through.append(Buffer("positions", e * p * a, "{e} × {P} × {a}"))
    if images.tower.deep_layers:
        through.append(Buffer("outputs of deep layers", e * n["U"] * n["D"], "{e} × {U} × {D}"))
    if kind == "siglip":
        through.append(Buffer("embedded patches", e * p * a, "{e} × {P} × {a}"))
    through.append(workspace)

    def wide(name: str, count: int = 1) -> Buffer:
        return Buffer(name, count * e * p * a, f"{count} × {{e}} × {{P}} × {{a}}" if count > 1 else "{e} × {P} × {a}")

    def split(name: str, count: int = 1) -> Buffer:
        return Buffer(name, count * e * p * share, f"{count} × {{e}} × {{P}} × {{A}}" if count > 1 else "{e} × {P} × {A}")

    def inner(name: str, count: int) -> Buffer:
        return Buffer(name, count * e * p * g, f"{count} × {{e}} × {{P}} × {{g}}")

    reduced = [wide("sum over the ranks")] if images.ranks > 1 else []
    turned = [] if kind == "siglip" else [split("queries and keys, turned", 2)]
    copied = [split("queries and keys", 2)] if turned and (images.copies or images.wide_rotary) else []
    gathered = [wide("queries, keys and values of all ranks", 3)] if turned and images.wide_rotary and images.ranks > 1 else []
    apart = [split("queries, keys and values apart", 3)] if turned and images.wide_rotary else []
    entering = [wide("hidden states"), wide("normed"), split("queries, keys and values", 3), *gathered, *apart, *copied]
    steps = [Step(VISION + "attention", (*entering, *turned, split("attended"), wide("projected"), *reduced, *through))]
    if apart:
        floats = Buffer("queries and keys in float32, and turned", 16 * p * share, "16 × {P} × {A}")
        steps.append(Step(VISION + "rotary embedding", (*entering, floats, *turned, *through)))
    if kind == "qwen2_5_vl":
        out = [wide("hidden states, attended, normed and their sum", 4)]
        steps.append(Step(VISION + "mlp", (*out, inner("gate and up, and their product", 3), wide("projected"), *reduced, *through)))
        if images.native > 3:
            steps.append(Step(VISION + "activation", (*out, inner("gate and up, gate activated, and their product", images.native), *through)))
    else:
        count = {"qwen2_vl": images.native if images.native < 4 else 3}.get(kind, 2)
        steps.append(Step(VISION + "mlp", (wide("hidden states, attended and normed", 3), inner("up and activated", count), *through)))
    if images.kept > images.rows:
        steps.append(Step(VISION + "outputs", (Buffer("image embeddings, as encoded", e * n["U"] * images.width, "{e} × {U} × {o}"), kept_outputs(images, e), through[0], workspace)))
    return steps
