"""The formulas of other people's calculators, in our own words; `claims.py` names their sources.

Each takes a run and gives bytes, or None where its calculator makes no claim. Line numbers are of the commit that claims.py names.
Nothing here imports `calculator`: the peers can't borrow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from peers.runs import Dims, Run

FLOATS = {"fp32": 4, "F32": 4, "fp16": 2, "bf16": 2, "F16": 2, "BF16": 2}  # format -> bytes a parameter
INT8 = ("bnb-int8", "quanto-int8", "torchao-int8wo")
INT4 = ("bnb-nf4", "bnb-nf4-dq", "bnb-fp4", "bnb-fp4-dq", "quanto-int4")
MIB = 1 << 20
Answer = float | None
Formula = Callable[[Run], Answer]


def rule_weights(run: Run) -> Answer:
    """Parameters x bytes a parameter: 4, 2, or 1 for int8 (transformer-math.md, "Model Weights")."""
    width = 1 if run.quant in INT8 else FLOATS.get(run.quant)
    return width and run.dims.params * width


def rule_total(run: Run) -> Answer:
    """1.2 x the model's memory (transformer-math.md, "Total Inference Memory")."""
    weights = rule_weights(run)
    return weights and 1.2 * weights


def accelerate_bytes(parameters: int, buffers: int, quant: str) -> Answer:
    """The model built in float32, all of it over 1, 2, 4 or 8 (estimate.py L273-L290); bfloat16 is asked as float16."""
    part = 4 // FLOATS[quant] if quant in FLOATS else 4 if quant in INT8 else 8 if quant in INT4 else 0
    return (4 * parameters + buffers) / part if part else None


def accelerate_weights(run: Run) -> Answer:
    """AutoModel has no output head; its two rotary buffers hold float32 (modeling.py L664-L703: buffers count)."""
    d = run.dims
    head = 0 if d.tied else d.vocab * d.hidden
    return accelerate_bytes(d.params - head, 2 * 4 * (d.head_dim // 2), run.quant) if run.torch else None


NYX_BITS = {"Q2_K": 3.35, "Q3_K_S": 3.5, "Q3_K_M": 3.91, "Q3_K_L": 4.27, "Q4_0": 4.55, "Q4_K_S": 4.58, "Q4_K_M": 4.85,
            "Q5_0": 5.54, "Q5_K_S": 5.54, "Q5_K_M": 5.69, "Q6_K": 6.59, "Q8_0": 8.5}  # fmt: skip


def nyx_weights(run: Run) -> Answer:
    """Parameters x bits a weight / 8 (L6-L19, L149)."""
    return None if run.torch or run.quant not in NYX_BITS else run.dims.params * NYX_BITS[run.quant] / 8


def nyx_cache(run: Run) -> Answer:
    """2 x hidden / (heads / KV heads) x layers x context x 16 bits for GGUF (L117-L121)."""
    d = run.dims
    if run.torch or run.sequences > 1 or (run.keys, run.values) != ("f16", "f16"):
        return None
    return 2 * d.hidden / (d.heads / d.kv_heads) * d.layers * run.context * 2


def nyx_compute(run: Run) -> Answer:
    """(2 x context / 1024 + 0.75) MiB a head, at a batch of 512 only (L101-L103)."""
    if not defaults(run) or run.sequences > 1 or run.settings["flash_attn"] or run.settings["n_ubatch"] != 512:
        return None
    return (run.context / 1024 * 2 + 0.75) * run.dims.heads * MIB


def ooba_total(run: Run) -> Answer:
    """A fit of MiB by symbolic regression over file size, layers, KV heads, width, context and cache bits (L364-L383).

    All layers on the GPU; the app starts llama.cpp with flash attention and one slot.
    """
    d, bits = run.dims, {"f16": 16, "q8_0": 8, "q4_0": 4}.get(run.keys)
    if not run.on_cuda or run.sequences > 1 or not run.settings["flash_attn"] or run.keys != run.values or not bits:
        return None
    layer = gguf_f16(d) / MIB / d.layers - 17.99552795246051 + 3.148552680382576e-05 * d.kv_heads * bits * run.context
    extra = max(0.9690636483914102, bits - (math.floor(50.77817218646521 * d.hidden / run.context) + 9.987899908205632))
    return (layer * (d.layers + extra) + 1516.522943869404) * MIB


def defaults(run: Run) -> bool:
    """Whether a device's buffers may yield any token's output: the peers can't be told of fewer."""
    return run.on_cuda and run.settings["n_outputs_max"] == 0


def gguf_f16(d: Dims) -> int:
    """Tensors of an F16 file: matrices in 2 bytes, norms and biases in 4 [bytes]. Stands for the file that peers read, less its metadata."""
    return 2 * d.params + 2 * d.vectors


def cookbook_weights(run: Run) -> Answer:
    """Parameters with untied embeddings, learned positions and 8 norms a layer (L267-L282), options set for the model."""
    d, width = run.dims, FLOATS.get(run.quant)
    if not run.torch or not width:
        return None
    embeddings, positions = 2 * d.vocab * d.hidden, d.hidden * (run.context or d.max_length)
    norms = 8 * d.hidden * d.layers + 2 * d.hidden
    attention = int(2 * (1 + d.kv_heads / d.heads) * d.layers * d.hidden**2)
    return width * (embeddings + positions + norms + attention + 3 * d.layers * d.hidden * d.ffn)


def cookbook_cache(run: Run) -> Answer:
    """Bytes x hidden x layers x tokens x batch (L363-L364): one tensor a layer, all heads."""
    if not run.torch or run.keys not in FLOATS:
        return None
    return FLOATS[run.keys] * run.dims.hidden * run.dims.layers * run.context * run.sequences


def cookbook_activations(run: Run) -> Answer:
    """Tokens x batch x hidden x (16 x 2 bytes + 2): one layer of a prefill in 16 bits (L353-L354)."""
    if not run.torch or run.phase != "prefill" or FLOATS.get(run.quant) != 2:
        return None
    return run.context * run.sequences * run.dims.hidden * 34


HF_MEM_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "f32": 32, "f16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5,
               "q4_0": 4.5, "iq4_nl": 4.5}  # fmt: skip


def hf_mem_weights(run: Run) -> Answer:
    """The checkpoint's tensors, shape x bytes of their type (metadata.py L48-L56)."""
    return run.dims.params * FLOATS[run.quant] if run.torch and run.quant in FLOATS else None


def hf_mem_cache(run: Run) -> Answer:
    """2 x layers x tokens x KV heads x head width x batch x bits / 8 (both kv_cache.py files; types.py L51-L86)."""
    if run.keys != run.values or run.keys not in HF_MEM_BITS:
        return None
    return int(run.cache_elements * HF_MEM_BITS[run.keys] / 8)


def analysis_weights(run: Run) -> Answer:
    """Layers in 16, 8 or 4 bits, one embedding in 16 (analysis.py L249-L305, L382-L406, L543; the shipped dtype configs)."""
    d = run.dims
    width = 2 if FLOATS.get(run.quant) == 2 else 1 if run.quant in INT8 else 0.5 if run.quant in INT4 else None
    if not run.torch or not width:
        return None
    layer = 2 * d.hidden**2 + 2 * d.hidden**2 * d.kv_heads / d.heads + 3 * d.hidden * d.ffn + 2 * d.hidden
    return width * (d.layers * layer + d.hidden) + 2 * d.vocab * d.hidden


def analysis_cache(run: Run) -> Answer:
    """2 x batch x tokens x hidden / heads x KV heads x bytes, a layer (analysis.py L904-L914)."""
    d, width = run.dims, {"bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}.get(run.keys)
    if not run.torch or not width:
        return None
    return 2 * run.sequences * run.context * d.hidden / d.heads * d.kv_heads * width * d.layers


def analysis_activations(run: Run) -> Answer:
    """Largest of attention, MLP, norm and all logits, in 16 bits (analysis.py L604-L621, L695-L699, L755, L766, L1653)."""
    d = run.dims
    if not run.torch or FLOATS.get(run.quant) != 2 or run.settings.get("attn_implementation") != "sdpa":
        return None
    tokens = run.sequences * (run.context if run.phase == "prefill" else 1)
    return 2 * tokens * max(3 * d.hidden, 2 * d.hidden + 4 * d.heads, d.ffn, d.hidden, d.vocab)


LLMFIT_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 1.05, "Q6_K": 0.8, "Q5_K_M": 0.68, "Q4_K_M": 0.58, "Q4_0": 0.58,
                "Q3_K_M": 0.48, "Q2_K": 0.37}  # fmt: skip


def llmfit_weights(run: Run) -> Answer:
    """Parameters x bytes of the format (models.rs L14-L23, L886)."""
    return None if run.torch or run.quant not in LLMFIT_BYTES else run.dims.params * LLMFIT_BYTES[run.quant]


def llmfit_cache(run: Run) -> Answer:
    """2 x KV heads x head width x tokens x layers x 2, 1 or 0.5 bytes (models.rs L636-L641, L916-L930)."""
    width = {"f16": 2, "bf16": 2, "q8_0": 1, "q4_0": 0.5}.get(run.keys)
    return None if run.torch or run.keys != run.values or not width else run.cache_elements * width


GGML = {"f32": (4, 1), "f16": (2, 1), "bf16": (2, 1), "q8_0": (34, 32), "q5_1": (24, 32), "q5_0": (22, 32), "q4_1": (20, 32),
        "q4_0": (18, 32), "iq4_nl": (18, 32)}  # type -> bytes and elements of a block  # fmt: skip


def parser_cells(run: Run) -> int:
    """The context, padded to 256 under flash attention and to 32 without (L390-L415)."""
    step = 256 if run.settings["flash_attn"] else 32
    return math.ceil(run.settings["n_ctx"] / step) * step


def parser_side(run: Run, kind: str) -> int:
    """Keys or values of one layer (ggml.go L140-L156)."""
    size, block = GGML[kind]
    return size * run.dims.kv_heads * run.dims.head_dim * parser_cells(run) // block


def parser_cache(run: Run) -> Answer:
    """Keys and values of every layer over the padded context (L595-L617)."""
    if run.torch:
        return None
    return run.dims.layers * (parser_side(run, run.keys) + parser_side(run, run.values))


def parser_compute(run: Run) -> Answer:
    """Inputs + the larger of one layer and the output, everything on one GPU (L669-L701, L767-L850, L854-L870, L1752)."""
    if not defaults(run) or run.quant != "F16":
        return None
    d, cells = run.dims, parser_cells(run)
    batch = min(cells, run.settings["n_ubatch"])
    inputs = 4 * batch * (d.hidden + 1 + cells)
    if run.settings["flash_attn"]:  # half a mask, the norm, the query matrix, and the layer's cache
        side = parser_side(run, run.keys) + parser_side(run, run.values)
        attention = 2 * cells * batch + 4 * d.hidden * batch + 2 * d.hidden * d.heads * d.head_dim + side
    else:  # the norm, the query twice, the scores
        attention = 4 * batch * (d.hidden + 2 * d.hidden + cells * d.heads)
    return inputs + max(attention, 4 * batch * 2 * (d.hidden + d.ffn), 4 * batch * (d.hidden + d.vocab))


def parser_total(run: Run) -> Answer:
    """Output buffer + weights on the GPU, a tied embedding among them + cache + compute (L444-L449, L538-L547, L1655-L1677)."""
    compute, cache, d = parser_compute(run), parser_cache(run), run.dims
    if compute is None or cache is None:
        return None
    output = 4 * min(parser_cells(run), run.settings["n_ubatch"]) * (d.hidden + d.vocab)
    return output + gguf_f16(d) - (0 if d.tied else 2 * d.vocab * d.hidden) + cache + compute


def add(*parts: Formula, constant: float = 0, only_cuda: bool = False) -> Formula:
    """The sum of a peer's own terms, where it claims all of them."""

    def total(run: Run) -> Answer:
        terms = [part(run) for part in parts] if run.on_cuda or not only_cuda else [None]
        return None if None in terms else constant + sum(term or 0 for term in terms)

    return total
