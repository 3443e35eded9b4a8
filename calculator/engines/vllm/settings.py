"""vLLM's settings under its own names."""

from __future__ import annotations

from calculator.engines.settings import COUNT, Real, Setting, Text
from calculator.engines.vllm import graphs, speculative
from calculator.engines.vllm.images import EXAMPLE

SETTINGS: dict[str, Setting] = {
    "gpu_memory_utilization": Setting(0.9, Real(0, 1), "share of the GPU's memory that the engine takes; since 0.21 the default is 0.92"),
    "max_model_len": Setting(None, COUNT, "longest sequence [tokens]; default --context"),
    "max_num_seqs": Setting(None, COUNT, "most sequences at once; default by GPU and version, as the server"),
    "max_num_batched_tokens": Setting(None, COUNT, "most tokens a step; default by GPU and version, as the server"),
    "block_size": Setting(16, range(1, 4097), "tokens of a cache block"),
    "tensor_parallel_size": Setting(1, range(1, 1025), "ranks that each layer is split over"),
    "enable_prefix_caching": Setting(None, bool, "whether prefixes are kept; changes what a recurrent layer keeps; default the engine's"),
    "mamba_cache_dtype": Setting(None, ("float32", "float16", "bfloat16"), "type of the convolutions' inputs, and of the state where nothing else says its own; default the model's"),
    "mamba_ssm_cache_dtype": Setting(None, ("float32", "float16", "bfloat16"), "type of the recurrent layers' state; default the config's"),
    "language_model_only": Setting(False, bool, "no vision tower is loaded"),
    "limit_mm_per_prompt": Setting(None, Text(60, EXAMPLE), "most images and videos of a prompt; 0 leaves a kind out of the profiling run"),
    "max_pixels": Setting(None, range(1, 2**31), "pixels of the largest image (mm_processor_kwargs); default the published checkpoint's"),
    "skip_mm_profiling": Setting(False, bool, "no image is encoded in the profiling run"),
    "data_parallel_size": Setting(1, range(1, 1025), "copies of the model, each with sequences of its own; experts are spread over all of them"),
    "enable_expert_parallel": Setting(False, bool, "whole experts dealt out over the ranks"),
    "enable_lora": Setting(False, bool, "slots for LoRA adapters"),
    "max_loras": Setting(1, range(1, 1025), "adapters in one batch"),
    "max_lora_rank": Setting(16, range(1, 1025), "largest rank of an adapter"),
    "cpu_offload_gb": Setting(0.0, Real(0, 100_000, from_low=True), "weights of each GPU that stay in host memory [GiB]"),
    "runner": Setting("generate", ("generate", "pooling"), "pooling: embeddings, scores and classes, without a head and a sampler"),
    "enforce_eager": Setting(False, bool, "no CUDA graphs"),
    **graphs.SETTINGS,
    "use_v1": Setting(None, bool, "VLLM_USE_V1: the V1 engine or not; default by version and card (0.8 to 0.10)"),
    "use_flashinfer_sampler": Setting(None, bool, "VLLM_USE_FLASHINFER_SAMPLER; default by release: in 0.9 to 0.11.0 where FlashInfer is installed, else off"),
    "kv_pool_bytes": Setting(None, COUNT, "cache pool of a GPU, given instead of derived (kv_cache_memory_bytes) [bytes]"),
    "total_memory_bytes": Setting(None, COUNT, "memory of a GPU as a program sees it, in place of a named GPU [bytes]"),
    "allow_long_max_model_len": Setting(False, bool, "VLLM_ALLOW_LONG_MAX_MODEL_LEN: contexts beyond the model's limit"),
    **speculative.SETTINGS,
}  # fmt: skip
