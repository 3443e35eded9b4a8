"""ollama as a preset: what it passes to the llama-server that it runs, where the user says nothing else.

Context by the memory of all GPUs, slots by OLLAMA_NUM_PARALLEL (here the number of sequences), flash attention where
the card has it, f16 cache unless OLLAMA_KV_CACHE_TYPE says otherwise (here --kv-dtype), batches by context and headroom.

Source: ollama @fb30760996871fa9460115c753afd2c60d4ab0f7 (August 2026, llama.cpp b10488): server/routes.go L2046 to L2057
(context), server/sched.go L797 to L905 (batches), llm/llama_server.go L348 to L440 (flags), L570 and ml/device.go L586
(flash attention), L2681 (predicted memory), envconfig/config.go L216 to L275 (variables).
"""

from __future__ import annotations

from calculator.memory import usable_memory
from calculator.quantization import Scheme, quantize, stored_nbytes
from calculator.spec import GpuSpec, ModelSpec, Workload
from calculator.units import GIB, MIB

_SURCHARGE = {2048: (2 * GIB, 60), 1024: (768 * MIB, 75)}  # beside the prediction [bytes]; the most it may be [% of memory]
_HEADS_WITH_KERNEL = frozenset({40, 64, 72, 80, 96, 112, 128, 256, 512})


def default_context(model: ModelSpec, gpu: GpuSpec | None, gpus: int) -> int:
    """num_ctx where nobody sets it: 4k, from 23 GiB on 32k, from 47 GiB on 256k; at most what the model was trained for."""
    memory = usable_memory(gpu).value * gpus if gpu else 0
    wanted = 262_144 if memory >= 47 * GIB else 32_768 if memory >= 23 * GIB else 4096
    return min(wanted, model.max_position_embeddings)


def settings(model: ModelSpec, scheme: Scheme, workload: Workload, gpu: GpuSpec | None, gpus: int, cuda: bool) -> dict[str, int | bool]:
    """Flash attention and batches. Memory is taken to be free, as on a card without a display."""
    flash = not cuda or (_flash_attention(gpu) and model.head_dim in _HEADS_WITH_KERNEL)
    batch = _batch(model, scheme, workload, gpu, gpus, cuda and not _flash_attention(gpu))
    return {"flash_attn": flash, "n_batch": batch, "n_ubatch": batch}


def _flash_attention(gpu: GpuSpec | None) -> bool:
    """CUDA from compute capability 6, but 7.2; ROCm and Metal always."""
    if gpu is None or gpu.vendor != "NVIDIA" or gpu.compute_capability is None:
        return True
    major = int(gpu.compute_capability.partition(".")[0])
    return major >= 6 and gpu.compute_capability != "7.2"


def _batch(model: ModelSpec, scheme: Scheme, workload: Workload, gpu: GpuSpec | None, gpus: int, without_flash: bool) -> int:
    cells = min(workload.context, model.max_position_embeddings) * workload.sequences
    memory = usable_memory(gpu).value if gpu else 0
    if without_flash:
        return 256 if cells > 4096 and 0 < memory <= 8 * GIB else 512
    batch = 2048 if cells > 32_768 else 1024 if cells > 4096 else 512
    while batch > 512 and memory and not _fits(batch, _predicted(model, scheme, cells), memory * gpus):
        batch //= 2
    return batch


def _predicted(model: ModelSpec, scheme: Scheme, cells: int) -> int:
    """Its own prediction [bytes]: the file, here without its metadata, and 16-bit K and V of hidden_size / heads a head."""
    head = model.hidden_size // model.num_attention_heads
    return stored_nbytes(quantize(model, scheme)) + 4 * model.num_hidden_layers * model.num_key_value_heads * head * cells


def _fits(batch: int, predicted: int, memory: int) -> bool:
    surcharge, most = _SURCHARGE[batch]
    return predicted <= memory * most // 100 and predicted + surcharge <= memory * 80 // 100
