"""Coverage-guided fuzzing of the readers (make fuzz): whatever the bytes, a result or a CalculatorError in one line.

The first byte picks the reader. Seeds are small valid files, so that what lies behind the checks is reached.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["calculator"]):
    from calculator.checkpoints import gguf as gguf_checkpoint
    from calculator.checkpoints.hf import Config, model_and_checkpoint, split_config
    from calculator.errors import CalculatorError
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


def one(data: bytes) -> None:
    """One input."""
    kind, data = data[:1], data[1:]
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
    methods = [
        {"quant_method": "gptq", "bits": 4, "group_size": 128}, {"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "compressed-tensors", "ignore": ["re:.*lm_head"], "config_groups": {"g": {"weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}}}},
        {"quant_method": "fp8", "weight_block_size": [128, 128]}, {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}},
    ]  # fmt: skip
    configs = [LLAMA, {"model_type": "x", "text_config": LLAMA, "vision_config": {"a": 1}}, *({**LLAMA, "quantization_config": q} for q in methods),
               {**LLAMA, "model_type": "gemma2", "sliding_window": 8, "head_dim": 16}, {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}]  # fmt: skip
    index = {"weight_map": {"a": "model-1.safetensors"}}
    return [b"g" + out, b"s" + struct.pack("<Q", len(header)) + header, b"i" + json.dumps(index).encode(), *(b"c" + json.dumps(c).encode() for c in configs)]


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds()):
        (folder / str(number)).write_bytes(seed)
        one(seed)
    atheris.Setup([sys.argv[0], "-max_len=4096", *sys.argv[1:], str(folder)], one)
    atheris.Fuzz()
