"""Small real checkpoints through llama.cpp's own converter, quantizer and loader: `python conversions.py LLAMA_CPP OUT.jsonl.gz [NAME ...]`.

For each model type: a model of transformers with random weights is saved, convert_hf_to_gguf.py's classes convert it (without
a tokenizer), llama-quantize says in dry runs what each recipe takes, and contexts on the CPU say what the cache takes.
Needs a checkout of llama.cpp, its library (llama-cpp-python), torch and transformers.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[1] + "/gguf-py", sys.argv[1]]
import gguf  # noqa: E402
import llama_cpp.llama_cpp as ll  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class  # noqa: E402
from conversion_cases import CASES  # noqa: E402

RECIPES = (
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_XS", "IQ4_NL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M",
    "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0", "MXFP4_MOE",
)  # fmt: skip
CONTEXTS = ((1024, 1, 512), (2048, 4, 64))  # cells, sequences, micro-batch
log: list[str] = []


@ll.llama_log_callback
def keep(_level: int, text: bytes, _data: Any) -> None:
    """Keep what the library logs."""
    log.append(text.decode(errors="replace"))


def checkpoint(name: str, folder: Path) -> dict[str, Any]:
    """A model with random weights, saved as its library saves it; its config."""
    case = dict(CASES[name])
    own, kind, extra = case.pop("_class", None), case.pop("model_type"), case.pop("_extra", {})
    config = transformers.AutoConfig.for_model(kind, **case)
    model = getattr(transformers, own)(config) if own else transformers.AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    if kind in ("gemma3n_text", "gemma4_text"):  # published checkpoints hold keys and values that layers with a shared cache don't use
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        for layer, sees in enumerate(config.layer_types):
            like = f"model.layers.{config.layer_types.index(sees)}.self_attn."
            for part in ("k_proj", "v_proj", "k_norm"):
                if f"{like}{part}.weight" in weights:
                    weights.setdefault(f"model.layers.{layer}.self_attn.{part}.weight", weights[f"{like}{part}.weight"].clone())
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    made: dict[str, Any] = json.loads((folder / "config.json").read_text()) | extra
    (folder / "config.json").write_text(json.dumps(made))
    vocabulary = {f"t{i}": i for i in range(made["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": {"type": "WordPiece", "vocab": vocabulary}}))
    (folder / "tokenizer_config.json").write_text("{}")
    return made


def convert(folder: Path, raw: dict[str, Any]) -> Path:
    """The GGUF file, in 16 bits."""
    fields = raw | ModelBase.load_hparams(folder, False) | {k: raw[k] for k in ("num_kv_heads",) if k in raw}
    architecture = get_model_architecture(fields, ModelType.TEXT)
    model_class = get_model_class(architecture)
    for base in model_class.__mro__:
        if "set_vocab" in base.__dict__:
            base.set_vocab = lambda self: (self.gguf_writer.add_tokenizer_model("no_vocab"), self.gguf_writer.add_vocab_size(raw["vocab_size"]))  # type: ignore[attr-defined]
    original = ModelBase.load_hparams
    ModelBase.load_hparams = staticmethod(lambda *_, **__: dict(fields))  # type: ignore[method-assign,assignment]
    out = folder / "model.gguf"
    try:
        with torch.inference_mode():
            model_class(folder, gguf.LlamaFileType.MOSTLY_F16, out).write()
    finally:
        ModelBase.load_hparams = original  # type: ignore[method-assign]
    return out


def header(path: Path) -> dict[str, Any]:
    """What the file says of itself: keys of its architecture, and tensors as (name, shape, type)."""
    reader = gguf.GGUFReader(path)
    name = reader.fields["general.architecture"].contents()
    keys = {k.removeprefix(f"{name}."): f.contents() for k, f in reader.fields.items() if k.startswith(f"{name}.")}
    whole = {k: v for k, v in keys.items() if not isinstance(v, (float, str)) and not (isinstance(v, list) and any(isinstance(x, float) for x in v))}
    tensors = [[t.name, [int(n) for n in reversed(t.shape)], t.tensor_type.name] for t in reader.tensors]
    return {"architecture": name, "keys": whole, "tensors": tensors}


def recipe_bytes(path: Path, recipe: str, *, imatrix: bool) -> int:
    """Bytes of all tensors, by the types of a dry run."""
    how = ll.llama_model_quantize_default_params()
    how.ftype, how.dry_run, how.nthread = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{recipe}"), True, 1
    if imatrix:
        entries, one = (ll.llama_model_imatrix_data * 2)(), (ctypes.c_float * 1)(1.0)
        entries[0].name, entries[0].data, entries[0].size, entries[1].name = b"x", one, 1, None
        how.imatrix = entries
    log.clear()
    if ll.llama_model_quantize(str(path).encode(), str(path).encode() + b".out", ctypes.byref(how)):
        raise RuntimeError("".join(log[-3:]).strip())
    total = 0
    for dims, kept, made in re.findall(r"\[ *\d+/ *\d+\] \S+ +- \[([\d, ]+)\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?", "".join(log)):
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[(made or kept).upper()]]
        elements = 1
        for n in dims.split(","):
            elements *= int(n)
        total += elements // block * size
    return total


def cache_mib(path: Path) -> list[list[float]] | None:
    """KV buffers of contexts on the CPU, as printed; None where the engine doesn't take so small a model, or aborts on it."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, json.dumps(_cache_mib(path)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    os.waitpid(child, 0)
    found: list[list[float]] | None = json.loads(text) if text else None
    return found


def _cache_mib(path: Path) -> list[list[float]] | None:
    load = ll.llama_model_default_params()
    load.n_gpu_layers = 0
    model = ll.llama_model_load_from_file(str(path).encode(), load)
    if not model:
        return None
    found = []
    for cells, sequences, micro_batch in CONTEXTS:
        how = ll.llama_context_default_params()
        how.n_ctx, how.n_seq_max, how.n_ubatch, how.flash_attn_type, how.swa_full = cells, sequences, micro_batch, 1, False
        log.clear()
        context = ll.llama_init_from_model(model, how)
        if not context:
            return None
        found.append([float(x) for x in re.findall(r"KV buffer size = +([\d.]+) MiB", "".join(log))])
        ll.llama_free(context)
    ll.llama_model_free(model)
    return found


def main() -> int:
    """Measure the named cases, or all."""
    logging.disable(logging.INFO)
    ll.llama_log_set(keep, None)
    ll.llama_backend_init()
    with gzip.GzipFile(sys.argv[2], "wb", mtime=0) as out:
        for name in sys.argv[3:] or CASES:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                config = checkpoint(name, folder)
                path = convert(folder, config)
                sizes = {q: [recipe_bytes(path, q, imatrix=i) for i in (False, True)] for q in RECIPES}
                line = {"name": name, "config": config, **header(path), "recipes": sizes, "cache_mib": cache_mib(path)}
            out.write((json.dumps(line) + "\n").encode())
            out.flush()
            print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
