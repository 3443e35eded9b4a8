"""Coverage-guided fuzzing of the readers (make fuzz): whatever the bytes, a result or a CalculatorError in one line.

The first byte picks the reader. Seeds are small valid files, so that what lies behind the checks is reached.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["calculator"]):
    from calculator.checkpoints import gguf as gguf_checkpoint
    from calculator.checkpoints.hf import Config, model_and_checkpoint, split_config
    from calculator.errors import CalculatorError
    from calculator.formats import FORMATS
    from calculator.readers import gguf, safetensors
    from calculator.readers.untrusted import parse_json


class Memory:
    """A file in memory."""

    name = "fuzz"

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
         "vocab_size": 32, "max_position_embeddings": 64, "torch_dtype": "float16", "tie_word_embeddings": True}  # fmt: skip


METHODS = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128}, {"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "compressed-tensors", "ignore": ["re:.*lm_head"], "config_groups": {"g": {"weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}}}},
    {"quant_method": "fp8", "weight_block_size": [128, 128]}, {"quant_method": "modelopt", "quant_algo": "FP8"}, {"quant_method": "mxfp4"},
    {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}},
]  # fmt: skip
BASES = [LLAMA, {"model_type": "x", "text_config": LLAMA, "vision_config": {"a": 1}}, *({**LLAMA, "quantization_config": q} for q in METHODS),
         {**LLAMA, "model_type": "gemma2", "sliding_window": 8, "head_dim": 16}, {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
         {**LLAMA, "model_type": "phi3", "rope_scaling": {"type": "longrope"}},
         {**LLAMA, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}]  # fmt: skip
ODD = [None, True, False, 0, 1, -1, 2, 3, 8, 64, 2**31, 2**63, 10**30, 0.5, 1e308, "", "llama", "float16", "re:(a+)+$", "re:.*mlp.*", "*", "\x1b[2J", "9" * 500, [], [1], [[]], [None], ["lm_head"],
       ["re:[", "o_proj"], {}, {"a": {}}, {"type": "float", "num_bits": 8}, {"g": 5}, {"g": {"weights": None}}]  # fmt: skip
KEYS = sorted({k for base in BASES for k in base} | {k for q in METHODS for k in q} | {"layer_types", "sliding_window_pattern", "use_sliding_window", "attention_bias", "mlp_bias",
              "partial_rotary_factor", "rope_parameters", "dynamic", "sparsity_config", "modules_to_not_convert", "activation_scheme", "version"})  # fmt: skip


def odd_config(choices: atheris.FuzzedDataProvider) -> dict:
    """A valid config with some of its fields, at any depth, made odd."""
    config = json.loads(json.dumps(BASES[choices.ConsumeIntInRange(0, len(BASES) - 1)]))
    for _ in range(choices.ConsumeIntInRange(1, 4)):
        at = config
        while inner := [v for v in at.values() if isinstance(v, dict) and v]:
            if choices.ConsumeBool():
                break
            at = inner[choices.ConsumeIntInRange(0, len(inner) - 1)]
        names = [*at, *KEYS]
        at[names[choices.ConsumeIntInRange(0, len(names) - 1)]] = json.loads(json.dumps(ODD[choices.ConsumeIntInRange(0, len(ODD) - 1)]))
    return config


def odd_header(choices: atheris.FuzzedDataProvider) -> bytes:
    """A safetensors header of plausible names, types and sizes."""
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] + [
        f"{p}model.layers.{n}.{m}" for p in ("", "language_model.") for n in (0, 1, 99999) for m in ("mlp.up_proj.weight", "mlp.up_proj.qweight", "self_attn.q_proj.bias",
        "self_attn.q_proj.weight.quant_state.bitsandbytes__nf4", "mlp.up_proj.weight.absmax", "input_layernorm.weight", "mlp.experts.7.w1.weight", "odd", "self_attn.rotary_emb.inv_freq")]  # fmt: skip
    header, at = {}, 0
    for _ in range(choices.ConsumeIntInRange(0, 8)):
        kind = ("F16", "BF16", "F32", "U8", "I32", "F4", "F8_E4M3", "C64")[choices.ConsumeIntInRange(0, 7)]
        shape = [choices.ConsumeIntInRange(0, 64) for _ in range(choices.ConsumeIntInRange(0, 3))]
        n = FORMATS[kind].nbytes(math.prod(shape)) if math.prod(shape) else 0
        header[names[choices.ConsumeIntInRange(0, len(names) - 1)]] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw


def one(data: bytes) -> None:
    """One input."""
    kind, data = data[:1], data[1:]
    if kind in (b"h", b"d"):
        choices = atheris.FuzzedDataProvider(data)
        data = odd_header(choices) if kind == b"h" else json.dumps(odd_config(choices)).encode()
        kind = b"s" if kind == b"h" else b"c"
    try:
        if kind == b"g":
            header = gguf.read_source(Memory(data))
            assert header.tensor_bytes <= header.file_bytes
            gguf_checkpoint.load(header, id="fuzz")
        elif kind == b"s":
            header = safetensors.read_source(Memory(data))
            assert header.file_bytes >= header.tensor_bytes
            model_and_checkpoint(Config(dict(LLAMA), None, ()), header, id="fuzz")
        elif kind == b"i":
            safetensors.index_files(parse_json(data, name="fuzz"), name="fuzz")
        else:
            model_and_checkpoint(split_config(parse_json(data, name="fuzz"), id="fuzz"), None, id="fuzz")
    except CalculatorError as e:
        message = str(e)
        if len(message.splitlines()) != 1 or len(message) > 2000:
            raise AssertionError(message) from e


def seeds() -> list[bytes]:
    """A valid input of each kind."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    text = lambda s: struct.pack("<Q", len(s)) + s  # noqa: E731
    keys = [(b"general.architecture", 8, text(b"llama")), (b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 100) + text(b"ab") * 100), (b"general.file_type", 4, struct.pack("<I", 15))]
    for name, n in (("embedding_length", 64), ("block_count", 1), ("attention.head_count", 4), ("feed_forward_length", 128), ("context_length", 64)):
        keys.append((b"llama." + name.encode(), 4, struct.pack("<I", n)))
    keys.append((b"llama.attention.head_count_kv", 9, struct.pack("<IQI", 4, 1, 2)))
    out = b"GGUF" + struct.pack("<IQQ", 3, 3, len(keys)) + b"".join(text(k) + struct.pack("<I", t) + p for k, t, p in keys)
    for name, dims, kind, at in ((b"token_embd.weight", (64, 32), 8, 0), (b"blk.0.attn_q.weight", (64, 64), 0, 2176), (b"blk.0.attn_norm.weight", (64,), 0, 18560)):
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)
    entry = {"dtype": "BF16", "shape": [32, 64], "data_offsets": [0, 4096]}
    quantized = {"model.layers.0.mlp.up_proj.qweight": {"dtype": "I32", "shape": [8, 8], "data_offsets": [4096, 4352]}}
    header = json.dumps({"__metadata__": {"format": "pt"}, "model.embed_tokens.weight": entry, **quantized}).encode()
    index = {"weight_map": {"a": "model-1.safetensors"}}
    return [b"g" + out, b"s" + struct.pack("<Q", len(header)) + header, b"i" + json.dumps(index).encode(), *(b"c" + json.dumps(c).encode() for c in BASES),
            *(k + bytes(range(i, i + 60)) for k in (b"h", b"d") for i in range(0, 190, 10))]


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds()):
        (folder / str(number)).write_bytes(seed)
        one(seed)
    atheris.Setup([sys.argv[0], "-max_len=4096", *sys.argv[1:], str(folder)], one)
    atheris.Fuzz()
