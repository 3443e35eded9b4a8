"""What the parts of one forward pass share: its tape, and what the family, the settings and the workload decide."""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.transformers.tape import Tape, Tensor
from calculator.spec import ModelSpec


class Pass(NamedTuple):
    """What a forward pass depends on beside the model."""

    attention: str  # eager, sdpa
    element_bytes: int
    softmax_bytes: int  # bytes a score in eager softmax: scores, and a float32 copy and result
    logits_to_keep: int  # 0: all positions
    static_cache: bool
    copy_bytes: int = 0  # transient bytes a weight that the linear layers are dequantized to
    copies: str = "never"  # never, prefill, always; int8: no copy, but wide products
    quantized_cache: bool = False
    cast_int8: bool = False  # int8 products come as float16 and are cast to another type
    math_bytes: int = 0  # bytes a score where sdpa is left the math kernel for grouped heads; 0: a fused kernel runs
    own_positions: bool = False  # each sequence has its positions, and rotary tables of them


class Course(NamedTuple):
    """What of a workload changes the course of a pass, and not its sizes alone."""

    decoding: bool
    one_token: bool
    one_sequence: bool
    window_reached: bool = False  # as many tokens are seen as a window holds
    window_passed: bool = False
    aligned: bool = True  # seen tokens are a multiple of 16, near ones are: rows of masks need no padding
    near_aligned: bool = True
    picks: bool = False  # logits of some of several tokens


def variables(model: ModelSpec, how: Pass, *, new: int, seen: int, sequences: int) -> dict[str, int]:
    """B sequences, q new tokens of each, T tokens seen at the end, N of them near enough for a window, W that fall out of it

    when the first token is generated; P and Q fill T and N to a multiple of 16; k positions have logits.
    """
    near = min(seen, model.sliding_window) if model.sliding_window else seen
    return {"B": sequences, "q": new, "T": seen, "N": near, "W": seen - 1 - near, "P": -seen % 16, "Q": -near % 16, "k": min(how.logits_to_keep or new, new)}


def course(model: ModelSpec, sizes: dict[str, int], *, decoding: bool) -> Course:
    """The course that these sizes take."""
    b, q, t, window = sizes["B"], sizes["q"], sizes["T"], model.sliding_window
    if not window:
        return Course(decoding, q == 1, b == 1, aligned=not sizes["P"], near_aligned=not sizes["P"], picks=1 < sizes["k"] < q)
    return Course(decoding, q == 1, b == 1, t >= window, t > window, not sizes["P"], not sizes["Q"], 1 < sizes["k"] < q)


def constants(model: ModelSpec, how: Pass) -> dict[str, int]:
    """H hidden, f feed-forward, V vocabulary, H and K query and KV heads, d head_dim and v of values, R of it turned, j half of that;

    e bytes an element, w in the math kernel; E experts, u for a token, g and s width of one and of shared ones; l, c, r, a
    ranks of queries and of keys and values, rotary and plain part of a key.
    """
    mla = model.mla
    rotary = model.rotary_dim or (mla.qk_rope_head_dim if mla else model.head_dim)
    found = {
        "h": model.hidden_size, "f": model.intermediate_size, "V": model.vocab_size, "H": model.num_attention_heads, "K": model.num_key_value_heads,
        "d": model.head_dim, "v": mla.v_head_dim if mla else model.head_dim, "R": rotary, "j": rotary // 2,
        "e": how.element_bytes, "w": how.math_bytes or how.element_bytes, "E": model.num_experts, "u": model.num_experts_per_tok,
        "g": model.expert_intermediate_size, "s": model.shared_expert_intermediate_size,
    }  # fmt: skip
    if mla:
        found |= {"l": mla.q_lora_rank, "c": mla.kv_lora_rank, "r": mla.qk_rope_head_dim, "a": mla.qk_nope_head_dim}
    return found


class Run:
    """One pass as it is written down."""

    def __init__(self, model: ModelSpec, how: Pass, course: Course) -> None:
        self.model, self.how, self.course = model, how, course
        self.decoding = course.decoding
        self.half, self.eager, self.static = how.element_bytes < 4, how.attention == "eager", how.static_cache
        self.heads, self.kv_heads = model.num_attention_heads, model.num_key_value_heads
        self.key_width, self.value_width = model.head_dim, model.mla.v_head_dim if model.mla else model.head_dim
        self.tape = Tape()
        self.new = self.tape.new
        self.tables: list[Tensor] = []  # cos and sin, positions
        self.masks: dict[bool, Tensor | None] = {}  # of layers that see everything (False), of those with a window (True)

    def at(self, step: str) -> None:
        """Name what comes next."""
        self.tape.step = step
