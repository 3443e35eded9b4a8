"""The compute buffers of a job's context, as the largest moment of the simulated graph."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from calculator.engines.llama_cpp import simulation
from calculator.engines.llama_cpp.allocator import Live
from calculator.engines.llama_cpp.buffers import Context
from calculator.engines.llama_cpp.families import Decoder
from calculator.errors import NotModelled
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step

SOURCE = "llama.cpp src/llama-graph.cpp, ggml/src/ggml-backend.cpp and ggml-alloc.c @0c1e57098, simulated node by node"
_GRAPHS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}  # model type -> the graph that llama.cpp builds for it


@lru_cache(maxsize=4096)
def compute(model: ModelSpec, context: Context) -> tuple[Peak, int]:
    """Largest moment of the accelerator's (or the CPU's) compute buffer, and bytes of the host's beside an accelerator."""
    device, *host = simulation.compute_buffers(_decoder(model), context)
    return _peak(device), host[-1].nbytes if host else 0


@lru_cache(maxsize=256)
def _decoder(model: ModelSpec) -> Decoder:
    if model.model_type not in _GRAPHS:
        raise NotModelled(f"llama.cpp's graph of {model.model_type} comes in a later version", hint="--engine transformers")
    return Decoder(
        _GRAPHS[model.model_type], model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.num_key_value_heads,
        model.head_dim, model.intermediate_size, model.vocab_size, qkv_bias=model.attention_bias != "none",
        output_bias=model.attention_bias == "qkvo", mlp_bias=model.mlp_bias, rope_factors=model.rope_type == "llama3",
    )  # fmt: skip


def _peak(buffer: simulation.Buffer) -> Peak:
    """What lives while the node is computed, and the holes that best fit leaves."""
    live = [Buffer(t.name, t.nbytes, _expression(t)) for t in buffer.live]
    step = Step(buffer.node, (*live, Buffer("holes between tensors", buffer.holes, "{holes}")))
    return Peak("prefill", step, buffer.nbytes, {"holes": buffer.holes})


def _expression(tensor: Live) -> str:
    """Elements times bytes; plain bytes where the tensor is padded or stored in blocks."""
    sizes = [*(n for n in tensor.ne if n > 1), tensor.fmt.block_bytes]
    plain = tensor.fmt.block_elements == 1 and prod(sizes) == tensor.nbytes
    return " × ".join(str(n) for n in sizes) if plain else str(tensor.nbytes)
