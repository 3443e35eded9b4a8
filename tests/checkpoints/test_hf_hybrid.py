"""Folders of hybrids as they are published: names, an MTP layer beside, a vision tower."""

from __future__ import annotations

import json
from math import prod

import pytest
from readers.files import safetensors_bytes

from calculator.architectures import build_inventory
from calculator.catalog import load_model
from calculator.estimate import estimate
from calculator.readers.hf_config import model_from_config

BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "head_dim": 16}  # fmt: skip
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4}
CONFIGS = {
    "qwen3_next": BASE | DELTA | {"model_type": "qwen3_next", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80},
    "qwen3_5_text": BASE | DELTA | {"model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1},
    "nemotron_h": BASE | {"model_type": "nemotron_h", "hybrid_override_pattern": "ME*-", "mamba_num_heads": 4, "mamba_head_dim": 12, "ssm_state_size": 8, "n_groups": 2,
                          "conv_kernel": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 56},
    "lfm2_moe": BASE | {"model_type": "lfm2_moe", "layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 3, "num_experts": 4, "num_experts_per_tok": 2,
                        "moe_intermediate_size": 48, "num_dense_layers": 1},
    "mamba2": {"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "torch_dtype": "bfloat16", "state_size": 8, "conv_kernel": 4, "expand": 2,
               "num_heads": 8, "head_dim": 16, "n_groups": 2},
}  # fmt: skip


def write(folder, config, *, prefix="", extra=()):
    """config.json and a header of the model's tensors under the checkpoint's names, experts one by one."""
    tensors, offset = {}, 0
    entries = []
    for group in build_inventory(model_from_config(config, id="made")).groups:
        for layer in group.indices or (None,):
            name = group.name.replace("{layer}", str(layer))
            if len(group.shape) == 3 and group.role.startswith("ffn"):
                parts = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if config["model_type"] == "lfm2_moe" else {}
                for old, new in parts.items():
                    name = name.replace(old, new)
                entries += [(name.replace("experts.", f"experts.{e}."), group.shape[1:]) for e in range(group.shape[0])]
            else:
                entries.append((name, group.shape))
    for name, shape in [*((prefix + n.removeprefix("model.") if prefix and n.startswith("model.") else n, s) for n, s in entries), *extra]:
        tensors[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + 2 * prod(shape)]}
        offset += 2 * prod(shape)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_published_folder_holds_what_its_config_implies(tmp_path, model_type):
    found = load_model(str(write(tmp_path / "m", CONFIGS[model_type])))
    assert [w for w in found.checkpoint.warnings if "ends before" not in w] == []
    inventory = build_inventory(found.spec)
    assert found.checkpoint.parameters == inventory.parameters
    job = estimate(found, context=512, partial=True)
    assert job.ledger.component_bytes("weights") == 2 * inventory.parameters
    assert {x.basis for x in job.ledger.lines if x.component == "weights"} == {"exact", "derived"} - ({"derived"} if not found.spec.tie_word_embeddings else set())


def test_an_mtp_layer_in_the_folder_is_not_loaded_and_said(tmp_path):
    found = load_model(str(write(tmp_path / "m", CONFIGS["qwen3_5_text"], prefix="model.language_model.", extra=[("mtp.layers.0.mlp.gate_proj.weight", (96, 64)), ("mtp.fc.weight", (64, 128))])))
    said = [w for w in found.checkpoint.warnings if "ends before" not in w]
    assert said == ["2 tensors of MTP layers are not loaded and not counted"]
    assert found.checkpoint.parameters == build_inventory(found.spec).parameters
