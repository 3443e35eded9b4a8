"""Who the peers are, what they claim and leave out, and who could not be held against a record."""

from __future__ import annotations

from typing import NamedTuple

from peers.formulas import (
    Formula,
    accelerate_weights,
    add,
    analysis_activations,
    analysis_cache,
    analysis_weights,
    cookbook_activations,
    cookbook_cache,
    cookbook_weights,
    hf_mem_cache,
    hf_mem_weights,
    llmfit_cache,
    llmfit_weights,
    nyx_cache,
    nyx_compute,
    nyx_weights,
    ooba_total,
    parser_cache,
    parser_compute,
    parser_total,
    rule_total,
    rule_weights,
)


class Peer(NamedTuple):
    """A calculator: where its formulas stand, what it claims, what it leaves out."""

    name: str
    source: str
    claims: dict[str, Formula]
    not_counted: str


PEERS = (
    Peer(
        "x1.2 rule", "EleutherAI/website @0a0e0eabff25ecf019bd5697554e12c9ebf3605c, content-blog/transformer-math.md",
        {"weights": rule_weights, "total": rule_total}, "context, batch; 4-bit formats",
    ),
    Peer(
        "accelerate estimate-memory",
        "huggingface/accelerate @16cb6eb80dd9aa8b4df1a63ef57863e455d53b83, src/accelerate/commands/estimate.py",
        {"weights": accelerate_weights}, "output head where untied, what int8 and int4 leave in 16 bits, KV cache, activations",
    ),
    Peer(
        "NyxKrage's calculator",
        "pandora-s-git/LLMVRAMCalculator @70c0241bc90e8025218a8d9667346aa72f60f472, LLMVRAMCalculator/LLMVRAMCalculator.py (a port)",
        {"weights": nyx_weights, "kv_cache": nyx_cache, "compute buffer": nyx_compute},
        "flash attention, batches other than 512, several sequences, quantized GGUF caches",
    ),
    Peer(
        "oobabooga's fit",
        "oobabooga/text-generation-webui @1dcde41d03d13fc768316f4d2256a8a6dd044268, modules/models_settings.py",
        {"total": ooba_total}, "batch; fitted to measured VRAM: CUDA's own share is in it, and not in the record",
    ),
    Peer(
        "EleutherAI cookbook", "EleutherAI/cookbook @827ee3b293a63f14403f1467d08c91fda213f4e6, calc/calc_transformer_mem.py",
        {"weights": cookbook_weights, "kv_cache": cookbook_cache, "activations": cookbook_activations,
         "total": add(cookbook_weights, cookbook_cache, cookbook_activations)},
        "grouped-query heads and values in the cache, tied embeddings, logits, decode passes",
    ),
    Peer(
        "hf-mem", "alvarobartt/hf-mem @e9946791d7798498a1775bfc826f02a0958cbd3d, src/hf_mem/{safetensors,gguf}/kv_cache.py",
        {"weights": hf_mem_weights, "kv_cache": hf_mem_cache, "total": add(hf_mem_weights, hf_mem_cache)},
        "activations, buffers; formats quantized on loading (it sums the file's tensors)",
    ),
    Peer(
        "llm-analysis", "cli99/llm-analysis @d841e40aec8c84b9e76ba9cfbce67418adb172bd, llm_analysis/analysis.py",
        {"weights": analysis_weights, "kv_cache": analysis_cache, "activations": analysis_activations},
        "biases, untied head, logits of the last token alone, eager attention, 32-bit weights",
    ),
    Peer(
        "gguf-parser-go", "gpustack/gguf-parser-go @8dc7a622149dd1e477c86778fc1123fc1c0a316a, file_estimate__llamacpp.go",
        {"kv_cache": parser_cache, "compute buffer": parser_compute, "total": parser_total},
        "a tied embedding's copy on the host; counts the output buffer on the GPU; weights are the file's own and not scored",
    ),
    Peer(
        "llmfit", "AlexsJones/llmfit @3f44fd30a43d2619146f7bc0aa66c90aa54d78e6, llmfit-core/src/models.rs",
        {"weights": llmfit_weights, "kv_cache": llmfit_cache,
         "total": add(llmfit_weights, llmfit_cache, constant=0.5e9, only_cuda=True)},
        "compute buffer (0.5 GB stands for it and the CUDA context), blocks of q8_0 and q4_0 caches",
    ),
)  # fmt: skip

UNAVAILABLE = {
    "NyxKrage's calculator, the original page": "a Hugging Face space, in none of the stored repositories (name and functions were searched "
    "for); the port that credits it is scored in its place",
    "llm-d planner": "llm-d-incubation/llm-d-planner @e50305af90f0812e77e1827f3bc740fe75b76370, src/planner/capacity_planner.py: "
    "claims vLLM only (activations are constants of an architecture, L33-L53), and no record is of vLLM",
    "NVIDIA aiconfigurator": "ai-dynamo/aiconfigurator @095f58a51c4ca8e61b66ec108d86f223f8d559ce, "
    "aic-core/src/aiconfigurator_core/sdk/backends/base_backend.py L1657-L1775: claims TensorRT-LLM, SGLang and vLLM, and no record "
    "is of them",
}
