"""A cache type that a checkpoint's config declares: which release of which server keeps it, and what overrides it."""

from __future__ import annotations

import json

import pytest

from calculator.checkpoints.quantization_config import declared_cache
from calculator.datafiles import read_json
from calculator.errors import NotModelled, Unsupported
from calculator.estimate import estimate

FLOAT8 = {"num_bits": 8, "type": "float", "dynamic": False, "strategy": "tensor"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": {
    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "input_activations": {"dynamic": True}}}}  # fmt: skip


def sized(tmp_path, quantization, **options):
    config = read_json("models/llama-3.1-8b.json")["config"] | {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return estimate(str(tmp_path / "config.json"), gpu="H100 SXM5 80GB", context=4096, **options)


@pytest.mark.parametrize(
    ("config", "declared"),
    [
        (MODELOPT, ""),
        (MODELOPT | {"kv_cache_quant_algo": "FP8"}, "modelopt"),
        (MODELOPT | {"kv_cache_scheme": FLOAT8}, "modelopt"),
        (MODELOPT | {"quantization": {"kv_cache_quant_algo": "FP8"}}, "modelopt"),
        (MODELOPT | {"kv_cache_quant_algo": "NVFP4"}, "modelopt-nvfp4"),
        (MODELOPT | {"kv_cache_scheme": FLOAT8 | {"type": "int"}}, ""),
        (MODELOPT | {"kv_cache_scheme": FLOAT8 | {"dynamic": True}}, ""),
        (MODELOPT | {"kv_cache_scheme": ["float", 8]}, ""),
        (COMPRESSED | {"kv_cache_scheme": None}, ""),
        (COMPRESSED | {"kv_cache_scheme": FLOAT8}, "compressed-tensors"),
        ({"quant_method": "awq", "kv_cache_scheme": FLOAT8}, ""),
    ],
)
def test_what_a_config_declares(config, declared):
    assert declared_cache(config) == declared


@pytest.mark.parametrize(
    ("engine", "version", "config", "kv_dtype"),
    [
        ("vllm", "0.13.0", MODELOPT, "bf16"), ("vllm", "0.14.0", MODELOPT, "fp8"), ("vllm", "0.33.0", MODELOPT, "fp8"),
        ("vllm", "0.14.1", COMPRESSED, "bf16"), ("vllm", "0.15.0", COMPRESSED, "fp8"),
        ("sglang", "0.5.2", MODELOPT, "bf16"), ("sglang", "0.5.3", MODELOPT, "fp8"), ("sglang", "0.5.12", COMPRESSED, "bf16"),
    ],
)  # fmt: skip
def test_who_keeps_it_since_when(engine, version, config, kv_dtype, tmp_path):
    found = sized(tmp_path, config | {"kv_cache_scheme": FLOAT8}, engine=engine, engine_version=version)
    assert found.job.deployment.kv_dtype == kv_dtype
    assert any("the cache is fp8" in w for w in found.warnings) == (kv_dtype == "fp8")


def test_it_holds_twice_the_tokens_and_can_be_overridden(tmp_path):
    config = MODELOPT | {"kv_cache_quant_algo": "FP8"}
    declared, wide = (sized(tmp_path, config, engine="vllm", kv_dtype=kv_dtype) for kv_dtype in (None, "bf16"))
    assert (declared.kv_bytes_per_token, wide.kv_bytes_per_token) == (65_536, 131_072)
    assert "--kv-cache-dtype fp8" in declared.start_command
    assert "--kv-cache-dtype bfloat16" in wide.start_command


def test_nothing_overrides_it_in_some_releases(tmp_path):
    config = COMPRESSED | {"kv_cache_scheme": FLOAT8}
    with pytest.raises(Unsupported, match="whatever it is told") as e:
        sized(tmp_path, config, engine="vllm", engine_version="0.21.0", kv_dtype="bf16")
    assert "0.22.0" in e.value.hint
    assert (
        sized(tmp_path, config, engine="vllm", engine_version="0.22.0", kv_dtype="bf16").job.deployment.kv_dtype
        == "bf16"
    )


def test_a_cache_of_4_bits_is_refused_unless_another_is_asked_for(tmp_path):
    config = MODELOPT | {"kv_cache_quant_algo": "NVFP4"}
    with pytest.raises(NotModelled, match="NVFP4"):
        sized(tmp_path, config, engine="vllm")
    assert sized(tmp_path, config, engine="vllm", kv_dtype="fp8").job.deployment.kv_dtype == "fp8"


def test_other_engines_keep_the_models_own_type(tmp_path):
    assert sized(tmp_path, MODELOPT | {"kv_cache_quant_algo": "FP8"}, quant="bf16").job.deployment.kv_dtype == "bf16"


@pytest.mark.parametrize(("engine", "version"), [("transformers", None), ("vllm", "0.13.0")])
def test_an_fp8_cache_that_is_asked_for_elsewhere_is_nobody_s_declaration(engine, version, tmp_path):
    found = sized(tmp_path, MODELOPT | {"kv_cache_quant_algo": "FP8"}, quant="bf16" if version is None else None, engine=engine, engine_version=version, kv_dtype="fp8")
    assert found.job.deployment.kv_dtype == "fp8"
    assert not any("config.json declares" in w for w in found.warnings)
