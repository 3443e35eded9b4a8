"""The recorded runs as a peer is told of them, and the figures that its answers are held against."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RECORDS = Path(__file__).parents[1] / "records"
FAMILIES = ("llama", "mistral", "qwen2")
NOT_ASKED = ("llama-cpp-offload", "llama-cpp-2025", "llama-cpp", "llama-cpp-logs", "vllm-logs", "sglang-logs", "training")  # claimed by none, or printed figures
QUANTITIES = {"weights_bytes": "weights", "tensor_bytes": "weights", "kv_bytes": "kv_cache", "act_bytes": "activations",
              "compute_bytes": "compute buffer"}  # fmt: skip


class Dims(NamedTuple):
    """A model's dimensions."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    bias: bool
    max_length: int

    @property
    def vectors(self) -> int:
        """Norms and biases [1]."""
        return self.layers * (2 * self.hidden + self.bias * (self.heads + 2 * self.kv_heads) * self.head_dim) + self.hidden

    @property
    def params(self) -> int:
        """Parameters, those of a tied output head counted once [1]."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        matrices = self.layers * (attention + 3 * self.hidden * self.ffn) + (2 - self.tied) * self.vocab * self.hidden
        return matrices + self.vectors


class Run(NamedTuple):
    """What a peer is told of a record."""

    dims: Dims
    engine: str
    quant: str
    context: int = 0  # tokens a sequence holds
    sequences: int = 1
    phase: str = "prefill"
    keys: str = ""  # type of the cache's keys and values
    values: str = ""
    settings: dict[str, Any] = {}  # noqa: RUF012

    @property
    def torch(self) -> bool:
        """Whether it ran under transformers."""
        return self.engine == "transformers"

    @property
    def on_cuda(self) -> bool:
        """Whether llama.cpp put it on a CUDA device."""
        return not self.torch and self.settings.get("backend") == "cuda"

    @property
    def cache_elements(self) -> int:
        """Keys and values that the cache holds [1]."""
        d = self.dims
        return 2 * d.layers * d.kv_heads * d.head_dim * self.context * self.sequences


def records() -> list[dict[str, Any]]:
    """Recorded runs of the families that are compared, in the order of file names."""
    out = []
    for path in sorted(RECORDS.iterdir()):
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            data = path.read_bytes()
            lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").splitlines()
            found = map(json.loads, lines)
            out += [r for r in found if r["model"]["model_type"] in FAMILIES and r["suite"] not in NOT_ASKED]
    return out


def dims(model: dict[str, Any]) -> Dims:
    """A record's model."""
    heads = model["num_attention_heads"]
    return Dims(
        model["hidden_size"], model["num_hidden_layers"], heads, model.get("num_key_value_heads", heads),
        model.get("head_dim") or model["hidden_size"] // heads, model["intermediate_size"], model["vocab_size"],
        model["tie_word_embeddings"], model["model_type"] == "qwen2", model["max_position_embeddings"],
    )  # fmt: skip


def asked(record: dict[str, Any]) -> Run:
    """What a peer is told of a record."""
    run, settings = record["run"], record["run"].get("settings", {})
    model, engine, quant = dims(record["model"]), record["engine"], run["quant"]
    if "n_ctx" in settings:  # llama.cpp: cells are shared among the sequences
        slots = settings["n_seq_max"]
        return Run(model, engine, quant, settings["n_ctx"] // slots, slots, "", settings["type_k"], settings["type_v"], settings)
    phase = run.get("phase", "")
    held = run.get("context", 0) + (phase == "decode")
    kind = run.get("kv_dtype") or quant
    return Run(model, engine, quant, held, run.get("sequences", 1), phase, kind, kind, settings)


def measured(record: dict[str, Any], buffers: dict[tuple[Dims, str], int]) -> Iterator[tuple[str, int]]:
    """A record's figures by quantity, and their total where all of its parts were recorded."""
    found = {QUANTITIES[name]: value for name, value in record["measured"].items() if name in QUANTITIES}
    yield from found.items()
    if {"weights", "kv_cache", "activations"} <= set(found):
        yield "total", sum(found.values())
    elif "compute buffer" in found and record["run"]["settings"]["backend"] == "cuda":
        yield "total", buffers[dims(record["model"]), record["run"]["quant"]] + found["kv_cache"] + found["compute buffer"]


def model_buffers(runs: list[dict[str, Any]]) -> dict[tuple[Dims, str], int]:
    """llama.cpp's weights on a CUDA device, by model and format [bytes]."""
    wanted = [r for r in runs if r["suite"] == "llama-cpp-buffers" and r["run"]["settings"]["backend"] == "cuda"]
    return {(dims(r["model"]), r["run"]["quant"]): r["measured"]["model_buffer_bytes"] for r in wanted}
