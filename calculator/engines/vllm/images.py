"""What the profiling run encodes: the largest image or video, as many as the encoder's budget holds, and the outputs that are kept."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import NamedTuple

from calculator.engines.base import Job
from calculator.engines.ranks import before_ampere, ranks_of
from calculator.engines.releases import Release
from calculator.engines.vllm.deployment import HISTORY, batch_limits, version_of
from calculator.errors import BadValue, Unsupported
from calculator.spec import ModelSpec, Tower

BUDGET_SOURCE = "vllm v0.11.0 v1/worker/utils.py MultiModalBudget; v0.19.0 multimodal/encoder_budget.py; v0.11.0 v1/core/encoder_cache_manager.py compute_mm_encoder_budget"
SINCE: Release = (0, 11, 0)  # the first release whose pass of images was read
KEPT_AT_BUDGET = ((0, 11, 0), (0, 13, 0))  # each output is kept in a tensor of the whole budget: v0.11.0 v1/worker/gpu_model_runner.py L3357-3371, v0.12.0; not v0.13.0
SPELLED_OUT = ((0, 11, 0), (0, 13, 0))  # Qwen3-VL counts 12.5 tokens for one of a video, its time stamps: v0.11.0 models/qwen3_vl.py L672-675; not v0.13.0
WITH_NEWLINES_UNTIL: Release = (0, 16, 0)  # Gemma 3's image counts as it stands in the prompt, not by its embeddings alone: v0.11.0 multimodal/profiling.py, v0.16.0 encoder_budget.py L39
LAST_OF_EQUALS_SINCE: Release = (0, 17, 0)  # of equally long ones the video: v0.17.1 multimodal/encoder_budget.py L184
# pixels of the largest image, where mm_processor_kwargs doesn't say: preprocessor_config.json of the published checkpoints; logs print the 16,384 tokens
MAX_PIXELS = {"qwen2_vl": 12_845_056, "qwen2_5_vl": 12_845_056, "qwen3_vl": 16_777_216}
VIDEO_PIXELS = 25_165_824  # of all frames of Qwen3-VL's largest video together: its video_preprocessor_config.json; logs print 12,288 and 153,600 tokens
MOST_FRAMES = 14  # vllm v0.11.0, v0.19.0 models/qwen2_vl.py _MAX_FRAMES_PER_VIDEO
LONGEST_RATIO = 200  # of the sides of an image: models/qwen2_vl.py get_image_size_with_most_features
MODALITIES = {"qwen2_vl": ("image", "video"), "qwen2_5_vl": ("image", "video"), "qwen3_vl": ("image", "video"), "siglip": ("image",)}
HELD = frozenset({"qwen3_vl", "qwen2_5_vl"})  # kinds whose pass was held against a start-up log
MANY = 999  # items of a prompt where limit_mm_per_prompt doesn't say
NO_PASS = "its profiling run of images"
EXAMPLE = "image=2,video=0"


class Item(NamedTuple):
    """One image or video."""

    tokens: int
    """As it counts against the budget."""
    rows: int
    """Embeddings that the tower gives."""
    patches: int


class Images(NamedTuple):
    """A batch of the largest images or videos, as the log prints it, and what depends on the release."""

    tower: Tower
    budget: int
    items: int
    modality: str
    patches: int
    """Of all items."""
    rows: int
    """Embeddings of all items."""
    kept: int
    """Rows of the tensors that they are kept in while the text model is profiled."""
    width: int
    """Elements of a row."""
    ranks: int
    wide_rotary: bool
    """Queries and keys are turned in float32, from copies (until 0.11)."""
    copies: bool
    """Queries and keys are copied before they are turned."""
    native: int
    """Tensors of the feed-forward's width that a gated activation holds: 4 where it isn't one kernel."""


def limits_of(job: Job) -> dict[str, int]:
    """limit_mm_per_prompt by modality. Raises BadValue."""
    given = str(job.deployment.settings.get("limit_mm_per_prompt") or "")
    found = {}
    for part in given.strip("{} ").split(",") if given else ():
        match = re.fullmatch(r"""\s*["']?(image|video)["']?\s*[=:]\s*([0-9]{1,6})\s*""", part)
        if match is None or match[1] in found:
            raise BadValue(f"limit_mm_per_prompt={given[:30]!r}", allowed=f"items by kind: {EXAMPLE}")
        found[match[1]] = int(match[2])
    return found


def passes(model: ModelSpec) -> bool:
    """Whether a model's tower has a pass here."""
    return model.tower is not None and model.tower.kind in MODALITIES


def without_formula(job: Job) -> str:
    """What of the profiling run of images isn't modelled; empty where all of it is, or where there is none.

    Cards before Ampere have no FlashAttention: what a tower attends with there wasn't read.
    """
    model, settings = job.model, job.deployment.settings
    if not model.vision_parameters or settings["language_model_only"]:
        return ""
    if not passes(model) or not version_of(job).v1 or before_ampere(job) or HISTORY.covered(job.deployment.engine_version) < SINCE:
        return NO_PASS
    return ""


def check_images(job: Job) -> None:
    """Refuse settings of images that change nothing here, and ranks that the tower can't be split over."""
    settings, tower = job.deployment.settings, job.model.tower
    given = [name for name in ("limit_mm_per_prompt", "max_pixels", "skip_mm_profiling") if settings.get(name)]
    if given and (settings["language_model_only"] or not job.model.vision_parameters):
        raise BadValue(f"{given[0]} without a vision tower", hint="leaving it out")
    if given and (tower is None or without_formula(job)):
        raise BadValue(f"{given[0]} changes nothing here: {job.model.id}'s profiling run of images has no formula in vllm {job.deployment.engine_version}", hint="leaving it out")
    if tower is None or without_formula(job) or settings["language_model_only"]:
        return
    limits = limits_of(job)
    if unknown := [name for name in limits if name not in MODALITIES[tower.kind]]:
        raise BadValue(f"limit_mm_per_prompt of {unknown[0]}s: {job.model.id} takes none", hint="image=N alone")
    if all(limits.get(name) == 0 for name in MODALITIES[tower.kind]):
        raise BadValue("limit_mm_per_prompt of nothing but 0, which loads no tower", hint="language_model_only=1, which says so (0.15 or later)")
    if settings.get("max_pixels") and tower.kind not in MAX_PIXELS:
        raise BadValue(f"max_pixels of {job.model.id}, whose images are all of {tower.image_size} pixels a side", hint="leaving it out")
    ranks = ranks_of(job)
    for number in (tower.num_heads, tower.intermediate_size):
        if number % ranks:
            raise Unsupported(f"vllm refuses: {number} is not divisible by {ranks} (the vision tower's heads and feed-forward are split too)", hint="a smaller --tp")


def images_of(job: Job, length: int) -> Images | None:
    """What a deployment's profiling run encodes; None where it encodes nothing. `length` max_model_len [tokens]."""
    settings, tower = job.deployment.settings, job.model.tower
    if tower is None or settings["language_model_only"] or settings["skip_mm_profiling"] or without_formula(job):
        return None
    tokens, sequences = batch_limits(job, length)
    limits = limits_of(job)
    active = tuple((name, limits.get(name, MANY)) for name in MODALITIES[tower.kind] if limits.get(name, MANY))
    return _images(job.model, tower, active, int(settings.get("max_pixels") or 0), tokens, sequences, length, ranks_of(job), HISTORY.covered(job.deployment.engine_version),
                   bool(settings["enforce_eager"]))  # fmt: skip


@lru_cache(maxsize=1024)
def _images(model: ModelSpec, tower: Tower, active: tuple[tuple[str, int], ...], given: int, tokens: int, sequences: int, length: int, ranks: int, release: Release, eager: bool) -> Images:
    """The budget, and how many of the longest items it holds.

    budget = max(max_num_batched_tokens, longest item);   items = max(1, min(budget / item, B max(1, min(limit, max_model_len / item))))

    Source: BUDGET_SOURCE.
    """
    found = {name: item_of(tower, name, given, length, release) for name, _ in active}
    budget = max(tokens, *(item.tokens for item in found.values()))
    last = release >= LAST_OF_EQUALS_SINCE
    modality = max(found, key=lambda name: (found[name].tokens, name if last else ""))
    item, limit = found[modality], dict(active)[modality]
    many = max(1, min(budget // item.tokens, sequences * max(1, min(limit, length // item.tokens))))
    padded = KEPT_AT_BUDGET[0] <= release < KEPT_AT_BUDGET[1] and item.rows < budget
    return Images(
        tower, budget, many, modality, many * item.patches, many * item.rows, many * (budget if padded else item.rows), model.hidden_size * (1 + tower.deep_layers), ranks,
        wide_rotary=release < (0, 12), copies=release >= (0, 16) or tower.kind == "qwen2_vl", native=3 if release >= (0, 16) or eager else 4,
    )  # fmt: skip


def item_of(tower: Tower, modality: str, given: int, length: int, release: Release) -> Item:
    """The longest image or video of a tower; `given` max_pixels, 0 for the published checkpoint's.

    Source: vllm v0.19.0 models/qwen2_vl.py L914-1030, models/qwen3_vl.py L626-665 (v0.11.0 L639-675), models/gemma3_mm.py.
    """
    merged = tower.spatial_merge_size**2
    if tower.kind == "siglip":
        rows = (tower.image_size // tower.patch_size // tower.spatial_merge_size) ** 2
        return Item(rows + (4 if release < WITH_NEWLINES_UNTIL else 0), rows, (tower.image_size // tower.patch_size) ** 2)
    unit = (tower.patch_size * tower.spatial_merge_size) ** 2
    pixels = given or MAX_PIXELS[tower.kind]
    if modality == "image":
        rows = most_tokens(pixels // unit)
        return Item(rows, rows, rows * merged)
    if tower.kind == "qwen3_vl":
        rows = (given or VIDEO_PIXELS) // tower.temporal_patch_size // unit
        if release < (0, 19) and length < rows:  # two frames of an image's shape, shrunk to the video's pixels
            side = math.isqrt(rows)
            rows = side * side
        spelled = SPELLED_OUT[0] <= release < SPELLED_OUT[1]
        return Item(rows * 25 // 2 if spelled else rows, rows, rows * merged)
    image = most_tokens(pixels // unit)
    pairs = max(1, min(length // image, MOST_FRAMES // tower.temporal_patch_size))
    return Item(pairs * image, pairs * image, pairs * image * merged)


def most_tokens(most: int) -> int:
    """The most tokens of an image whose sides are whole and not too unequal."""
    for tokens in range(max(1, most), 0, -1):
        height = next(d for d in range(math.isqrt(tokens), 0, -1) if tokens % d == 0)
        if tokens // height / height <= LONGEST_RATIO:
            return tokens
    return 1
