"""SGLang's settings under its own names."""

from __future__ import annotations

from calculator.engines.settings import COUNT, Real, Setting
from calculator.engines.sglang import speculative
from calculator.engines.sglang.attention import BACKENDS

SETTINGS: dict[str, Setting] = {
    "mem_fraction_static": Setting(None, Real(0, 1), "share of the free memory for weights and cache; default by card, ranks and version"),
    "max_running_requests": Setting(None, COUNT, "most requests at once; default by pool and context_length, 2,048 to 4,096"),
    "max_total_tokens": Setting(None, COUNT, "most tokens of the pool"),
    "chunked_prefill_size": Setting(None, range(-1, COUNT.stop), "tokens of a prefill pass, -1 for whole prompts; default by card"),
    "context_length": Setting(None, COUNT, "longest sequence [tokens]; default the model's limit"),
    "page_size": Setting(1, range(1, 1025), "tokens of a page of the pool; TensorRT-LLM's kernels make 64 of 1"),
    "attention_backend": Setting(None, BACKENDS, "attention kernels, which set buffers and pages; default by card, model and version"),
    "tensor_parallel_size": Setting(1, range(1, 1025), "ranks that each layer is split over"),
    "ep_size": Setting(1, range(1, 1025), "ranks that the experts are dealt out over"),
    "dp_size": Setting(1, range(1, 1025), "groups of ranks with attention and a cache of their own, with enable_dp_attention"),
    "enable_dp_attention": Setting(False, bool, "attention in dp_size groups of ranks"),
    "swa_full_tokens_ratio": Setting(0.8, Real(0, 1), "tokens of windowed layers for each of the others, where they have a pool of their own"),
    "mamba_full_memory_ratio": Setting(0.9, Real(0, 1000), "memory of recurrent states for that of the tokens"),
    "max_mamba_cache_size": Setting(None, COUNT, "slots of recurrent states"),
    "disable_radix_cache": Setting(False, bool, "finished prompts are forgotten"),
    "enable_lora": Setting(False, bool, "slots for LoRA adapters"),
    "max_loras_per_batch": Setting(8, range(1, 1025), "adapters at once, with enable_lora"),
    "max_lora_rank": Setting(None, range(1, 4097), "largest rank of the adapters, with enable_lora"),
    "lora_target_modules": Setting("all", ("all", "attention"), "layers with adapters: all linear ones, or q, k, v and o"),
    "cuda_graph_max_bs": Setting(None, COUNT, "largest batch that CUDA graphs are captured for; default by card, ranks and version"),
    "disable_cuda_graph": Setting(False, bool, "no CUDA graphs"),
    **speculative.SETTINGS,
    "total_memory_bytes": Setting(None, COUNT, "memory of a GPU as a program sees it, in place of a named GPU [bytes]"),
    "allow_overwrite_longer_context_len": Setting(False, bool, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"),
}  # fmt: skip
