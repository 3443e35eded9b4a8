"""One measurement with llama.cpp's own library, in a process of its own: `python llama_cpp_run.py '{"model": ..., "run": ...}'`.

Writes a GGUF file of the true tensors, names and shapes from the real transformers model (data: a hole in the file),
and reports what the library prints: sizes of a recipe, or of a context's buffers, to 0.01 MiB.
Needs llama-cpp-python (any build: with a CUDA one the figures are a GPU's), gguf, torch and transformers.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as ll
import numpy as np

MIB = 2**20
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3", "phi3": "phi3"}
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
log: list[str] = []


@ll.llama_log_callback
def keep(_level: int, text: bytes, _data: Any) -> None:
    """Keep what the library logs."""
    log.append(text.decode(errors="replace"))


def printed(pattern: str) -> list[tuple[str, int]]:
    """Buffers that the log names [(buffer type, bytes)]."""
    return [(name, round(float(mib) * MIB)) for name, mib in re.findall(rf"(\S+)\s+{pattern} +([\d.]+) MiB", "".join(log))]


def tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """GGUF names and shapes of the real model's tensors."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "calculator" / "checks"))
    import tracing

    names = gguf.get_tensor_name_map(architecture(config)[0], config["num_hidden_layers"])
    found = {}
    for name, tensor in tracing.build(config, device="meta").state_dict().items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        stem, _, suffix = name.rpartition(".")
        mapped = names.get_name(stem)
        if mapped is None:
            raise ValueError(f"gguf has no name for {name}")
        found[f"{mapped}.{suffix}"] = tuple(tensor.shape)
    if config.get("rope_scaling", {}).get("rope_type") == "llama3":
        found["rope_freqs.weight"] = (head_dim(config) // 2,)
    return found


def architecture(config: dict[str, Any]) -> tuple[gguf.MODEL_ARCH, str]:
    """llama.cpp's architecture of a model type."""
    name = ARCHITECTURES[config["model_type"]]
    return next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name), name


def head_dim(config: dict[str, Any]) -> int:
    """Elements of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def write(path: str, config: dict[str, Any]) -> None:
    """A GGUF file of F16 matrices and F32 vectors, its data a hole."""
    out = gguf.GGUFWriter(path, architecture(config)[1])
    out.add_tokenizer_model("no_vocab")
    out.add_vocab_size(config["vocab_size"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(head_dim(config))
    out.add_value_length(head_dim(config))
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(head_dim(config))
    if config["model_type"].startswith("gemma"):
        out.add_sliding_window(config["sliding_window"])
    size = 0
    for name, shape in tensors(config).items():
        kind = np.float16 if len(shape) > 1 else np.float32
        nbytes = int(np.prod(shape)) * np.dtype(kind).itemsize
        out.add_tensor_info(name, shape, np.dtype(kind), nbytes)
        size += -(-nbytes // 32) * 32
    for part in (out.write_header_to_file, out.write_kv_data_to_file, out.write_ti_data_to_file, out.flush, out.close):
        part()
    os.truncate(path, -(-os.path.getsize(path) // 32) * 32 + size)


def file_of(config: dict[str, Any]) -> str:
    """The file of a model, written once: next to no disk, but torch takes its time to say the shapes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    path = os.path.join(tempfile.gettempdir(), f"probe-{digest}.gguf")
    if not os.path.exists(path):
        write(path + ".part", config)
        os.replace(path + ".part", path)
    return path


def recipe(path: str, quant: str) -> dict[str, int]:
    """Bytes of all tensors, by the library's own dry run."""
    how = ll.llama_model_quantize_default_params()
    how.ftype, how.dry_run, how.nthread = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{quant}"), True, 1
    if ll.llama_model_quantize(path.encode(), (path + ".out").encode(), ctypes.byref(how)):
        raise RuntimeError("".join(log[-3:]).strip())
    sizes = re.findall(r"quant size +=? *([\d.]+) MiB", "".join(log))
    return {"tensor_bytes": round(float(sizes[-1]) * MIB)}


def context(path: str, settings: dict[str, Any]) -> dict[str, int]:
    """Bytes of the buffers of a context, really allocated."""
    load = ll.llama_model_default_params()
    load.n_gpu_layers = settings.get("n_gpu_layers", 0)
    model = ll.llama_model_load_from_file(path.encode(), load)
    if not model:
        raise RuntimeError("".join(log[-3:]).strip())
    how = ll.llama_context_default_params()
    for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_outputs_max", "kv_unified", "swa_full"):
        if name in settings:
            setattr(how, name, settings[name])
    how.flash_attn_type = int(settings["flash_attn"])
    how.type_k, how.type_v = TYPES[settings["type_k"]], TYPES[settings["type_v"]]
    if not ll.llama_init_from_model(model, how):
        raise RuntimeError("".join(log[-3:]).strip())
    found: dict[str, int] = {}
    gpu = settings["backend"] != "cpu"
    for name, pattern in (("kv", "KV buffer size ="), ("output", "output buffer size ="), ("compute", "compute buffer size =")):
        for buffer, nbytes in printed(pattern):
            host = gpu and name == "compute" and ("Host" in buffer or "CPU" in buffer)
            key = f"host_{name}_bytes" if host else f"{name}_bytes"
            found[key] = found.get(key, 0) + nbytes
    return found


def main() -> int:
    """Run the task of the first argument."""
    task = json.loads(sys.argv[1])
    run = task["run"]
    ll.llama_log_set(keep, None)
    ll.llama_backend_init()
    path = file_of(task["model"])
    measured = context(path, run["settings"]) if "settings" in run else recipe(path, run["quant"])
    print(json.dumps({"measured": measured, "environment": {"llama-cpp-python": __import__("llama_cpp").__version__, "rounding_bytes": 5243,
                                                            "gpu_offload": bool(ll.llama_supports_gpu_offload())}}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
