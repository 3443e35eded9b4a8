"""ModelSpec -> Inventory: which tensors a model has. One file per structural kind; a model type is a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal, NamedTuple

from calculator.architectures.by_layer import gemma3n, gemma4, mllama
from calculator.architectures.classic import classic, falcon
from calculator.architectures.dense import AFTER, AROUND, GLM, PARALLEL, dense, plain
from calculator.architectures.encoders import bert, modernbert, nomic
from calculator.architectures.hybrid import (
    delta_net,
    falcon_h1,
    granite_hybrid,
    jamba,
    kimi_linear,
    lfm2,
    minimax,
    nemotron_h,
    olmo_hybrid,
    state_space,
)
from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.architectures.moe import experts
from calculator.architectures.windowed import step
from calculator.errors import UnknownArchitecture
from calculator.names import nearest
from calculator.spec import ModelSpec

__all__ = ["ARCHITECTURES", "Architecture", "Inventory", "TensorGroup", "architecture", "build_inventory"]

Bias = Literal["none", "qkv", "qkvo"]


class Architecture(NamedTuple):
    """A model type: its structural kind and what its config leaves unsaid. `source` is its folder in transformers' models."""

    kind: Callable[[ModelSpec], Inventory]
    folder: str
    gguf: str = ""  # the name of its graph in llama.cpp, where that is modelled
    attention_bias: Bias = "none"  # where the config doesn't say
    bias_setting: tuple[str, Bias] = ("", "none")  # the config's switch, and what it switches on
    mlp_bias_setting: str = ""
    tied: bool = False  # where the config doesn't say
    full_every: int = 0  # each n-th layer sees everything and the others a window; 0: no layer has a window of its own
    full_anywhere: bool = False  # the config lists which layers see everything, in any order
    windows: str = "always"  # the config's sliding_window holds "always", "never", or where "use_sliding_window" says so
    partial_rotary: float = 0  # share of a head that is turned, where the config doesn't say; 0: the class knows whole heads only
    head_dim: int = 0  # the class's own, where the config doesn't say; 0: hidden_size / heads
    expert_width: str = ""  # the field that holds the width of one expert; empty: no experts
    recurrent: str = ""  # the kind of its recurrent layers
    engines: tuple[str, ...] = ()  # whose activations have formulas
    encoder: bool = False  # no cache
    plain_only: bool = False  # what transformers' quantizers leave alone isn't verified for it

    @property
    def source(self) -> str:
        """The code that the inventory follows."""
        return f"transformers models/{self.folder}/modeling_{self.folder}.py v5.23.0"


_QKVO: tuple[str, Bias] = ("attention_bias", "qkvo")
_QKV: tuple[str, Bias] = ("attention_bias", "qkv")
_ALL = ("transformers", "llama.cpp", "vllm", "sglang")
_TRANSFORMERS = ("transformers",)
_LOCAL = ("transformers", "llama.cpp")
_LLAMA_CPP = ("llama.cpp",)
_GEMMA2 = partial(dense, norms=AROUND)
_GEMMA3 = partial(dense, qk_norm="head", norms=AROUND)
_DEEPSEEK = partial(experts, shared="shared_experts", correction="gate.e_score_correction_bias")
_MOE = "moe_intermediate_size"
_GPT = partial(classic, layer="transformer.h.{layer}.", final=("transformer.ln_f",), embedding="transformer.wte")
_GPT2 = partial(_GPT, qkv=("attn.c_attn",), out="attn.c_proj", mlp=("mlp.c_fc", "mlp.c_proj"), norms=("ln_1", "ln_2"), positions="transformer.wpe")
_BOTH: tuple[str, Bias] = ("use_bias", "qkvo")

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(dense, "llama", "llama", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", windows="never", engines=_ALL),
    "mistral": Architecture(dense, "mistral", "llama", engines=_ALL),
    "ministral3": Architecture(dense, "ministral3", "mistral3", head_dim=128, engines=_LOCAL),
    "qwen2": Architecture(dense, "qwen2", "qwen2", "qkv", windows="use_sliding_window", engines=_ALL),
    "qwen3": Architecture(partial(dense, qk_norm="head"), "qwen3", "qwen3", bias_setting=_QKVO, windows="use_sliding_window", head_dim=128, engines=_ALL),
    "phi3": Architecture(partial(dense, fused_qkv=True, fused_gate_up=True), "phi3", "phi3", partial_rotary=1, engines=_ALL),
    "gemma": Architecture(dense, "gemma", "gemma", bias_setting=_QKVO, tied=True, head_dim=256, engines=_LOCAL),
    "gemma2": Architecture(_GEMMA2, "gemma2", "gemma2", bias_setting=_QKVO, tied=True, full_every=2, head_dim=256, engines=(*_LOCAL, "vllm")),
    "gemma3_text": Architecture(_GEMMA3, "gemma3", "gemma3", bias_setting=_QKVO, tied=True, full_every=6, head_dim=256, engines=(*_LOCAL, "vllm")),
    "granite": Architecture(dense, "granite", "granite", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", engines=_LOCAL),
    "smollm3": Architecture(dense, "smollm3", "smollm3", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", tied=True, windows="use_sliding_window", engines=_LOCAL),
    "seed_oss": Architecture(dense, "seed_oss", "seed_oss", "qkv", bias_setting=_QKV, mlp_bias_setting="mlp_bias", head_dim=128, engines=_LOCAL),
    "ernie4_5": Architecture(dense, "ernie4_5", "ernie4_5", bias_setting=("use_bias", "qkvo"), mlp_bias_setting="use_bias", tied=True, head_dim=128, engines=_LOCAL),
    "olmo": Architecture(partial(dense, final_norm=False), "olmo", bias_setting=_QKVO, engines=_TRANSFORMERS),
    "olmo2": Architecture(partial(dense, qk_norm="all", norms=AFTER), "olmo2", "olmo2", bias_setting=_QKVO, engines=_LOCAL),
    "olmo3": Architecture(partial(dense, qk_norm="all", norms=AFTER), "olmo3", "olmo2", bias_setting=_QKVO, full_every=4, engines=_LOCAL),
    "exaone4": Architecture(partial(dense, qk_norm="head", norms=AFTER), "exaone4", "exaone4", full_every=4, engines=_LOCAL),
    "glm4": Architecture(partial(dense, fused_gate_up=True, norms=GLM), "glm4", "glm4", "qkv", bias_setting=_QKV, head_dim=128, partial_rotary=0.5, engines=_LOCAL),
    "cohere": Architecture(partial(dense, norms=PARALLEL, qk_norm="config"), "cohere", "command-r", bias_setting=_QKVO, tied=True, engines=_LOCAL),
    "cohere2": Architecture(partial(dense, norms=PARALLEL), "cohere2", "cohere2", bias_setting=_QKVO, tied=True, full_every=4, engines=_LOCAL),
    "stablelm": Architecture(partial(dense, norm_bias=True), "stablelm", "stablelm", bias_setting=("use_qkv_bias", "qkv"), partial_rotary=0.25, engines=_LOCAL),
    "starcoder2": Architecture(partial(plain, names=("c_fc", "c_proj")), "starcoder2", "starcoder2", "qkvo", bias_setting=("use_bias", "qkvo"),
                               mlp_bias_setting="use_bias", tied=True, engines=_LOCAL),
    "nemotron": Architecture(plain, "nemotron", "nemotron", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", partial_rotary=0.5, engines=_LOCAL),
    "arcee": Architecture(partial(plain, norm_bias=False), "arcee", "arcee", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", engines=_LOCAL),
    "mixtral": Architecture(partial(experts, block="block_sparse_moe"), "mixtral", "llama", expert_width="intermediate_size", engines=_ALL),
    "phimoe": Architecture(partial(experts, block="block_sparse_moe", norm_bias=True), "phimoe", "phimoe", bias_setting=_QKVO, expert_width="intermediate_size", engines=_LLAMA_CPP),
    "qwen2_moe": Architecture(partial(experts, shared="shared_expert", shared_gate=True), "qwen2_moe", "qwen2moe", "qkv", bias_setting=("qkv_bias", "qkv"),
                              windows="use_sliding_window", expert_width=_MOE, engines=_LOCAL),
    "qwen3_moe": Architecture(partial(experts, qk_norm="head"), "qwen3_moe", "qwen3moe", bias_setting=_QKVO, windows="use_sliding_window",
                              expert_width=_MOE, engines=_ALL),
    "olmoe": Architecture(partial(experts, qk_norm="all"), "olmoe", "olmoe", bias_setting=_QKVO, expert_width="intermediate_size", engines=_LOCAL),
    "granitemoe": Architecture(partial(experts, block="block_sparse_moe", router="router.layer.weight"), "granitemoe", "granitemoe", bias_setting=_QKVO,
                               expert_width="intermediate_size", engines=_LOCAL),
    "gpt_oss": Architecture(partial(experts, router="router.weight", bias=True, sinks=True), "gpt_oss", "gpt-oss", "qkvo", bias_setting=_QKVO,
                            full_every=2, head_dim=64, expert_width="intermediate_size", engines=_LOCAL),
    "glm4_moe": Architecture(partial(_DEEPSEEK, qk_norm="config"), "glm4_moe", "glm4moe", bias_setting=_QKV, expert_width=_MOE, partial_rotary=0.5, engines=_LOCAL),
    "minimax_m2": Architecture(partial(experts, block="block_sparse_moe", qk_norm="all", correction="e_score_correction_bias"), "minimax_m2", "minimax-m2",
                               head_dim=128, expert_width="intermediate_size", partial_rotary=1, engines=_LOCAL),
    "hunyuan_v1_moe": Architecture(partial(experts, router="gate.wg.weight", shared="shared_mlp", qk_norm="head", qk_names=("query_layernorm", "key_layernorm")),
                                   "hunyuan_v1_moe", "hunyuan-moe", bias_setting=_QKVO, expert_width="intermediate_size", engines=_LOCAL),
    "ernie4_5_moe": Architecture(partial(experts, shared="shared_experts", correction="moe_statics.e_score_correction_bias"), "ernie4_5_moe", "ernie4_5-moe",
                                 bias_setting=("use_bias", "qkvo"), mlp_bias_setting="use_bias", tied=True, expert_width=_MOE, engines=_LOCAL),
    "llama4_text": Architecture(partial(experts, block="feed_forward", router="router.weight", shared="shared_expert"), "llama4", "llama4", bias_setting=_QKVO,
                                full_every=4, head_dim=128, expert_width="intermediate_size", engines=_LLAMA_CPP),
    "deepseek_v2": Architecture(partial(experts, shared="shared_experts"), "deepseek_v2", "deepseek2", bias_setting=_QKVO, expert_width=_MOE, engines=_LOCAL),
    "deepseek_v3": Architecture(_DEEPSEEK, "deepseek_v3", "deepseek2", bias_setting=_QKVO, expert_width=_MOE, engines=_LOCAL),
    "glm4_moe_lite": Architecture(_DEEPSEEK, "glm4_moe_lite", "deepseek2", bias_setting=_QKVO, expert_width=_MOE, engines=_LOCAL),
    "kimi_k2": Architecture(_DEEPSEEK, "deepseek_v3", "deepseek2", bias_setting=_QKVO, expert_width=_MOE, engines=_LOCAL),
    "gpt2": Architecture(_GPT2, "gpt2", "", "qkvo", bias_setting=_BOTH, mlp_bias_setting="use_bias", tied=True, plain_only=True),
    "gpt_bigcode": Architecture(_GPT2, "gpt_bigcode", "", "qkvo", bias_setting=_BOTH, mlp_bias_setting="use_bias", tied=True, plain_only=True),
    "gptj": Architecture(partial(_GPT, qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"), out="attn.out_proj", mlp=("mlp.fc_in", "mlp.fc_out"), norms=("ln_1",),
                                 mlp_bias=True, head_bias=True), "gptj", plain_only=True),
    "gpt_neox": Architecture(partial(classic, layer="gpt_neox.layers.{layer}.", qkv=("attention.query_key_value",), out="attention.dense",
                                     mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), norms=("input_layernorm", "post_attention_layernorm"),
                                     embedding="gpt_neox.embed_in", final=("gpt_neox.final_layer_norm",), head="embed_out", mlp_bias=True),
                             "gpt_neox", "", "qkvo", bias_setting=_QKVO, plain_only=True),
    "falcon": Architecture(falcon, "falcon", bias_setting=("bias", "qkvo"), mlp_bias_setting="bias", tied=True, plain_only=True),
    "phi": Architecture(partial(classic, layer="model.layers.{layer}.", qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), out="self_attn.dense",
                                mlp=("mlp.fc1", "mlp.fc2"), norms=("input_layernorm",), embedding="model.embed_tokens", final=("model.final_layernorm",),
                                head_bias=True), "phi", "", "qkvo", bias_setting=_BOTH, mlp_bias_setting="use_bias", partial_rotary=0.5, plain_only=True),
    "bloom": Architecture(partial(classic, layer="transformer.h.{layer}.", qkv=("self_attention.query_key_value",), out="self_attention.dense",
                                  mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), norms=("input_layernorm", "post_attention_layernorm"),
                                  embedding="transformer.word_embeddings", final=("transformer.word_embeddings_layernorm", "transformer.ln_f")),
                          "bloom", "", "qkvo", bias_setting=_BOTH, mlp_bias_setting="use_bias", tied=True, plain_only=True),
    "mpt": Architecture(partial(classic, layer="transformer.blocks.{layer}.", qkv=("attn.Wqkv",), out="attn.out_proj", mlp=("ffn.up_proj", "ffn.down_proj"),
                                norms=("norm_1", "norm_2"), embedding="transformer.wte", final=("transformer.norm_f",), norm_bias=False), "mpt", tied=True, plain_only=True),
    "opt": Architecture(partial(classic, layer="model.decoder.layers.{layer}.", qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                                out="self_attn.out_proj", mlp=("fc1", "fc2"), norms=("self_attn_layer_norm", "final_layer_norm"), mlp_bias=True,
                                embedding="model.decoder.embed_tokens", final=("model.decoder.final_layer_norm",), positions="model.decoder.embed_positions",
                                offset=2), "opt", "", "qkvo", bias_setting=_BOTH, tied=True, plain_only=True),
    "hunyuan_v1_dense": Architecture(partial(dense, qk_norm="head", qk_names=("query_layernorm", "key_layernorm")), "hunyuan_v1_dense", bias_setting=_QKVO),
    "apertus": Architecture(partial(plain, qk_norm="head", norm_bias=False, norms=("attention_layernorm", "feedforward_layernorm"), activation=True), "apertus", bias_setting=_QKVO,
                            plain_only=True),
    "dots1": Architecture(partial(_DEEPSEEK, qk_norm="head"), "dots1", bias_setting=_QKVO, windows="never", expert_width=_MOE),
    "solar_open": Architecture(_DEEPSEEK, "solar_open", bias_setting=_QKVO, head_dim=128, expert_width=_MOE),
    "exaone_moe": Architecture(partial(experts, shared="shared_experts", correction="e_score_correction_bias", qk_norm="head"), "exaone_moe", full_every=4, expert_width=_MOE),
    "deepseek_v32": Architecture(_DEEPSEEK, "deepseek_v32", bias_setting=_QKVO, expert_width=_MOE),
    "glm_moe_dsa": Architecture(_DEEPSEEK, "glm_moe_dsa", bias_setting=_QKVO, expert_width=_MOE),
    "hy_v3": Architecture(partial(experts, shared="shared_experts", correction="e_score_correction_bias", qk_norm="head", mtp_copies=False), "hy_v3", bias_setting=_QKVO,
                          mlp_bias_setting="mlp_bias", head_dim=128, expert_width=_MOE),
    "mistral4": Architecture(partial(experts, shared="shared_experts"), "mistral4", bias_setting=_QKVO, expert_width=_MOE),
    "step3p5": Architecture(step, "step3p7", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", full_every=4, full_anywhere=True, partial_rotary=1, head_dim=128, expert_width=_MOE,
                            plain_only=True),
    "gemma3n_text": Architecture(gemma3n, "gemma3n", bias_setting=_QKVO, tied=True, full_every=5, head_dim=256, plain_only=True),
    "gemma4_text": Architecture(gemma4, "gemma4", bias_setting=_QKVO, tied=True, full_every=6, head_dim=256, plain_only=True),
    "mllama_text_model": Architecture(mllama, "mllama", plain_only=True),
    "bert": Architecture(bert, "bert", "", "qkvo", encoder=True, plain_only=True),
    "roberta": Architecture(partial(bert, offset=2), "roberta", "", "qkvo", encoder=True, plain_only=True),
    "xlm-roberta": Architecture(partial(bert, offset=2), "xlm_roberta", "", "qkvo", encoder=True, plain_only=True),
    "nomic_bert": Architecture(nomic, "nomic_bert", encoder=True, plain_only=True),
    "modernbert": Architecture(modernbert, "modernbert", windows="never", encoder=True, plain_only=True),
    "qwen3_next": Architecture(partial(delta_net, projections="two"), "qwen3_next", bias_setting=_QKVO, head_dim=256, expert_width=_MOE, recurrent="delta"),
    "qwen3_5_text": Architecture(delta_net, "qwen3_5", bias_setting=_QKVO, head_dim=256, recurrent="delta"),
    "qwen3_5_moe_text": Architecture(delta_net, "qwen3_5_moe", bias_setting=_QKVO, head_dim=256, expert_width=_MOE, recurrent="delta"),
    "olmo_hybrid": Architecture(olmo_hybrid, "olmo_hybrid", bias_setting=_QKVO, recurrent="delta"),
    "kimi_linear": Architecture(kimi_linear, "kimi_linear", bias_setting=_QKVO, expert_width=_MOE, recurrent="kda"),
    "nemotron_h": Architecture(nemotron_h, "nemotron_h", mlp_bias_setting="mlp_bias", head_dim=128, expert_width=_MOE, recurrent="mamba2"),
    "granitemoehybrid": Architecture(granite_hybrid, "granitemoehybrid", bias_setting=_QKVO, expert_width="intermediate_size", recurrent="mamba2"),
    "falcon_h1": Architecture(falcon_h1, "falcon_h1", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", recurrent="mamba2"),
    "bamba": Architecture(falcon_h1, "bamba", bias_setting=_QKVO, mlp_bias_setting="mlp_bias", recurrent="mamba2"),
    "lfm2": Architecture(lfm2, "lfm2", tied=True, recurrent="conv"),
    "lfm2_moe": Architecture(lfm2, "lfm2_moe", tied=True, expert_width=_MOE, recurrent="conv"),
    "jamba": Architecture(jamba, "jamba", expert_width="intermediate_size", recurrent="mamba"),
    "mamba": Architecture(state_space, "mamba", tied=True, recurrent="mamba"),
    "falcon_mamba": Architecture(state_space, "falcon_mamba", tied=True, recurrent="mamba"),
    "mamba2": Architecture(state_space, "mamba2", recurrent="mamba2"),
    "minimax": Architecture(minimax, "minimax", expert_width="intermediate_size", recurrent="lightning"),
}  # fmt: skip


def architecture(model_type: str) -> Architecture:
    """The row of a model type. Raises UnknownArchitecture: an unknown type is never taken for another."""
    if model_type not in ARCHITECTURES:
        near = nearest(model_type, ARCHITECTURES) if len(model_type) < 80 else []
        raise UnknownArchitecture(
            f"model_type {model_type[:60]!r} has no formulas here and is not guessed",
            allowed=f"{len(ARCHITECTURES)} model types, which vram models lists",
            hint=f"{near[0]}, if that is what it is" if near else "vram trace, with its config.json",
        )
    return ARCHITECTURES[model_type]


@lru_cache(maxsize=512)
def build_inventory(model: ModelSpec) -> Inventory:
    """All tensors of the model as its checkpoint stores them, before quantization."""
    return architecture(model.model_type).kind(model)
