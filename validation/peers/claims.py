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


class Claim(NamedTuple):
    """A quantity that a peer answers for, and what its answer leaves out or is not asked."""

    formula: Formula
    not_counted: str


class Peer(NamedTuple):
    """A calculator, where its formulas stand, and what it claims."""

    name: str
    source: str
    claims: dict[str, Claim]


PEERS = (
    Peer(
        "x1.2 rule", "EleutherAI/website @0a0e0eabff25ecf019bd5697554e12c9ebf3605c, content-blog/transformer-math.md",
        {"weights": Claim(rule_weights, "what int8 leaves in 16 bits; not claimed: 4-bit formats"),
         "total": Claim(rule_total, "context and batch: a fifth of the weights stands for the rest")},
    ),
    Peer(
        "accelerate estimate-memory",
        "huggingface/accelerate @16cb6eb80dd9aa8b4df1a63ef57863e455d53b83, src/accelerate/commands/estimate.py",
        {"weights": Claim(accelerate_weights, "an untied output head; what int8 and int4 leave in 16 bits; scales")},
    ),
    Peer(
        "NyxKrage's calculator",
        "pandora-s-git/LLMVRAMCalculator @70c0241bc90e8025218a8d9667346aa72f60f472, LLMVRAMCalculator/LLMVRAMCalculator.py (a port)",
        {"weights": Claim(nyx_weights, "which tensors a format keeps wider; not claimed: formats outside its list of 12"),
         "kv_cache": Claim(nyx_cache, "padding of cells; not claimed: several sequences, types other than f16"),
         "compute buffer": Claim(nyx_compute, "vocabulary and width; not claimed: flash attention, batches other than 512, a limit on outputs")},
    ),
    Peer(
        "oobabooga's fit",
        "oobabooga/text-generation-webui @1dcde41d03d13fc768316f4d2256a8a6dd044268, modules/models_settings.py",
        {"total": Claim(ooba_total, "batch, vocabulary; a fit of measured VRAM, so CUDA's own share is in it and not in the record; "
                        "not claimed: several sequences, no flash attention")},
    ),
    Peer(
        "EleutherAI cookbook", "EleutherAI/cookbook @827ee3b293a63f14403f1467d08c91fda213f4e6, calc/calc_transformer_mem.py",
        {"weights": Claim(cookbook_weights, "tying of embeddings; adds learned positions; not claimed: quantized formats"),
         "kv_cache": Claim(cookbook_cache, "values beside keys, grouped-query heads; not claimed: quantized caches"),
         "activations": Claim(cookbook_activations, "logits, attention scores, the MLP's width; not claimed: decode, 32 bits"),
         "total": Claim(add(cookbook_weights, cookbook_cache, cookbook_activations), "as its parts")},
    ),
    Peer(
        "hf-mem", "alvarobartt/hf-mem @e9946791d7798498a1775bfc826f02a0958cbd3d, src/hf_mem/{safetensors,gguf}/kv_cache.py",
        {"weights": Claim(hf_mem_weights, "rotary buffers; not claimed: formats made on loading; GGUF files are summed, not predicted"),
         "kv_cache": Claim(hf_mem_cache, "padding of cells; not claimed: quantized caches but fp8, keys and values of two types"),
         "total": Claim(add(hf_mem_weights, hf_mem_cache), "activations")},
    ),
    Peer(
        "llm-analysis", "cli99/llm-analysis @d841e40aec8c84b9e76ba9cfbce67418adb172bd, llm_analysis/analysis.py",
        {"weights": Claim(analysis_weights, "biases, an untied head, scales; not claimed: 32 bits"),
         "kv_cache": Claim(analysis_cache, "scales of quantized caches; not claimed: 4 and 2 bits"),
         "activations": Claim(analysis_activations, "logits of the last token alone: always all; not claimed: eager attention, 32 bits")},
    ),
    Peer(
        "gguf-parser-go", "gpustack/gguf-parser-go @8dc7a622149dd1e477c86778fc1123fc1c0a316a, file_estimate__llamacpp.go",
        {"kv_cache": Claim(parser_cache, "padding of each sequence's cells"),
         "compute buffer": Claim(parser_compute, "reuse inside a layer; not claimed: a limit on outputs, a run without a GPU"),
         "total": Claim(parser_total, "as its parts; adds the output buffer, which is the host's; weights are summed from the file")},
    ),
    Peer(
        "llmfit", "AlexsJones/llmfit @3f44fd30a43d2619146f7bc0aa66c90aa54d78e6, llmfit-core/src/models.rs",
        {"weights": Claim(llmfit_weights, "which tensors a format keeps wider; not claimed: formats outside its list"),
         "kv_cache": Claim(llmfit_cache, "scales of q8_0 and q4_0, padding of cells; not claimed: other types"),
         "total": Claim(add(llmfit_weights, llmfit_cache, constant=0.5e9, only_cuda=True),
                        "the compute buffer: 0.5 GB stands for it and for the CUDA context")},
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
