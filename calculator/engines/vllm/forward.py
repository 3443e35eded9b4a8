"""The profiling run as steps: the forward pass of the largest batch, then the sampler for the most sequences."""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.releases import Release
from calculator.engines.vllm.by_layer import inputs_kept, inputs_step
from calculator.engines.vllm.deployment import Sampler
from calculator.engines.vllm.families import family_of
from calculator.engines.vllm.images import Images
from calculator.engines.vllm.latent import Mode, early_attention
from calculator.engines.vllm.mixers import mixer_step
from calculator.engines.vllm.towers import kept_outputs, symbols_of, tower_steps
from calculator.spec import LatentAttention, ModelSpec
from calculator.steps import Buffer, Peak, Step, largest

EXPERT_CHUNK = 32768  # VLLM_FUSED_MOE_CHUNK_SIZE: vllm v0.11.0 envs.py L778
SORT_BELOW = 8  # sequences from which the Triton kernel replaces the sort: v0.19.0 v1/sample/ops/topk_topp_sampler.py L251
_NONE = LatentAttention(0, 0, 0, 0, 0)


class Profile(NamedTuple):
    """What the profiling run depends on beside the model's dimensions."""

    tokens: int
    sequences: int
    vocabulary: int
    """All of it: the ranks gather their logits."""
    element_bytes: int
    sampler: Sampler
    hidden_copies: int
    """Tensors of tokens x hidden beside the feed-forward's own."""
    workspace: int
    multiprocessors: int
    sort_buffers: int = 12
    """Bytes an element of the radix sort's second buffers."""
    samples: bool = True
    """The last pipeline stage does."""
    reduces: bool = False
    """Ranks add their outputs into a tensor of its own, while the feed-forward's buffers live (V0, as it isn't compiled)."""
    marlin_copies: bool = False
    experts_share: bool = True
    workspaces_wide: bool = False
    latent_rows: int = 0
    """Rows that latent attention's prefill takes from the cache at once."""
    images: Images | None = None
    """What is encoded before the text model's pass."""
    release: Release = (0, 0, 0)
    """What recurrent layers run depends on it."""
    latent: Mode = "row"
    """How latent attention is kept."""
    gathered: int = 1
    """Copies of the model whose tokens the experts take together."""
    pools: bool = False
    """A pooler in place of the sampler."""


def profile(rank: ModelSpec, run: Profile) -> Peak:
    """Peak of the profiling run on one tensor-parallel rank.

    sampler, sort:    B V (e + 4 + 4 + 8 + 8 + 12) + e T h + 2 e B h + workspace
    sampler, Triton:  B V (e + 4 + 4 + 4) + 4 V min(B, multiprocessors) + e T h + 2 e B h + workspace
    sampler, second model runner:  B V e (0.29 to 0.31), B V (e + 4) before, B V (e + 12) since 0.32, and the hidden states
    feed-forward:     e T (3 f + c h) + workspace              c = 3 (V0, eager), 4 (V1, compiled; V0 with XFormers)
                      + e T h where V0 ranks add their outputs, + e T f for packed codes until 0.7: the kernel's second input
    experts:          e M k (max(2 f, h) + f) + e c T h + 4 T E + workspace          k of E experts a token
                      (until 0.7 2 f + h + f; since 0.17 max(2 f, h) + max(f, h));   M = min(T, 32,768) until 0.16

                      + e T h where shared experts have run before, 2 f in place of 3 f without a gate
    recurrent layers: mixers.py
    latent attention: e T H (n + r) + e R H (n + v) + e c T h + workspace      R rows of earlier context: latent_rows

    T tokens, B sequences, V vocabulary, e bytes an element, f the rank's share of the feed-forward.    derived, c fitted

    Equals the printed 4.76, 5.56, 5.64, 4.84 and 7.38 GiB of five models on 0.11, 1.89 on 0.19 and 2.02, 2.07, 2.99 and 5.66 on V0.
    """
    workspace = Buffer("cuBLAS workspace", run.workspace, "{w}")
    steps = [_sampler(rank, run, workspace)] if run.samples else []
    if run.pools:
        steps.append(_pooler(rank, run, workspace))
    if rank.num_experts:
        steps.append(Step("experts", tuple(experts_step(rank, run, workspace))))
    if _dense(rank):
        steps.append(_feed_forward(rank, run, workspace))
    if rank.mla:
        steps.append(_latent_attention(rank, rank.mla, run, workspace))
    if mixer := mixer_step(rank, tokens=run.tokens, element_bytes=run.element_bytes, hidden_copies=run.hidden_copies, release=run.release, workspace=workspace):
        steps.append(mixer)
    if inputs := inputs_step(rank, tokens=run.tokens, element_bytes=run.element_bytes, hidden_copies=run.hidden_copies, workspace=workspace):
        steps.append(inputs)
    if run.images:
        kept = kept_outputs(run.images, run.element_bytes)
        steps = [Step(step.name, (*step.buffers, kept)) for step in steps] + tower_steps(run.images, run.element_bytes, workspace)
    step, nbytes = largest(steps)
    mla, state = rank.mla or _NONE, rank.recurrent
    symbols = {"e": run.element_bytes, "B": run.sequences, "V": run.vocabulary, "T": run.tokens, "G": run.tokens * run.gathered, "h": rank.hidden_size, "f": _widest(rank), "w": run.workspace, "c": run.hidden_copies,
               "M": min(run.sequences, run.multiprocessors), "r": run.sort_buffers, "E": rank.num_experts, "k": rank.num_experts_per_tok,
               "F": rank.expert_intermediate_size, "l": rank.expert_latent_size, "m": _chunk(run), "H": rank.num_attention_heads, "R": run.latent_rows,
               "n": mla.qk_nope_head_dim, "p": mla.qk_rope_head_dim, "v": mla.v_head_dim}  # fmt: skip
    if state and step.name == "recurrent layer":
        symbols |= {"K": state.groups * state.state_size, "I": state.inner, "C": state.conv_channels, "H": state.heads}
    if rank.by_layer:
        symbols |= {"L": rank.num_hidden_layers, "i": rank.by_layer.input_width}
    return Peak("prefill", step, nbytes, symbols | symbols_of(run.images) if run.images else symbols)


def _widest(rank: ModelSpec) -> int:
    """Width of the widest feed-forward: some of Gemma 4's are twice as wide."""
    return rank.intermediate_size * (2 if rank.by_layer and rank.by_layer.double_wide else 1)


def _dense(rank: ModelSpec) -> bool:
    """Whether a layer has a feed-forward without experts."""
    if "dense" in rank.layer_types or "sparse" in rank.layer_types:
        return "dense" in rank.layer_types
    return len(rank.expert_layers) < rank.num_hidden_layers


def _sampler(rank: ModelSpec, run: Profile, workspace: Buffer) -> Step:
    """Logits, and what choosing among them holds."""
    t, b, v, h, e = run.tokens, run.sequences, run.vocabulary, rank.hidden_size, run.element_bytes
    cells = b * v
    sampler = [Buffer("logits", e * cells, "{e} × {B} × {V}")]
    if run.sampler != "logits":
        sampler.append(Buffer("float32 logits", 4 * cells, "4 × {B} × {V}"))
    if run.sampler == "masked":
        sampler += [Buffer("masked logits", 4 * cells, "4 × {B} × {V}"), Buffer("probabilities", 4 * cells, "4 × {B} × {V}")]
    elif run.sampler == "sort" or (run.sampler == "triton" and b < SORT_BELOW):
        sampler += [
            Buffer("sorted values", 4 * cells, "4 × {B} × {V}"),
            Buffer("sorted indices", 8 * cells, "8 × {B} × {V}"),
            Buffer("indices to sort", 8 * cells, "8 × {B} × {V}"),
            Buffer("radix sort", run.sort_buffers * cells, "{r} × {B} × {V}"),
        ]
    elif run.sampler == "triton":
        sampler += [
            Buffer("probabilities", 4 * cells, "4 × {B} × {V}"),
            Buffer("exponential noise", 4 * cells, "4 × {B} × {V}"),
            Buffer("top-k and top-p rows", 4 * v * min(b, run.multiprocessors), "4 × {V} × {M}"),
        ]
    sampler += [
        Buffer("hidden states", e * t * h, "{e} × {T} × {h}"),
        Buffer("last hidden states, twice", 2 * e * b * h, "2 × {e} × {B} × {h}"),
        workspace,
    ]
    return Step("sampler", tuple(sampler))


def _pooler(rank: ModelSpec, run: Profile, workspace: Buffer) -> Step:
    """Hidden states of all tokens, in float32 and normalized: the largest of the tasks that a pooler is run for.

    Source: vllm v0.14.0 v1/worker/gpu_model_runner.py L4664-4691.
    """
    t, h, e = run.tokens, rank.hidden_size, run.element_bytes
    return Step("pooler", (Buffer("hidden states", e * t * h, "{e} × {T} × {h}"), Buffer("float32 and normalized", 8 * t * h, "2 × 4 × {T} × {h}"), workspace))


def _feed_forward(rank: ModelSpec, run: Profile, workspace: Buffer) -> Step:
    """Gate, up and their product beside the hidden states."""
    t, h, f, e = run.tokens, rank.hidden_size, _widest(rank), run.element_bytes
    gate_and_up = Buffer("gate and up", 2 * e * t * f, "2 × {e} × {T} × {f}") if family_of(rank).gated else Buffer("up", e * t * f, "{e} × {T} × {f}")
    mlp = [
        gate_and_up,
        Buffer("gate * up", e * t * f, "{e} × {T} × {f}"),
        Buffer("hidden states", run.hidden_copies * e * t * h, "{c} × {e} × {T} × {h}"),
        *inputs_kept(rank, tokens=t, element_bytes=e),
        workspace,
    ]
    if run.reduces:
        mlp.append(Buffer("sum over the ranks", e * t * h, "{e} × {T} × {h}"))
    if run.marlin_copies:
        mlp.append(Buffer("the kernel's input", e * t * f, "{e} × {T} × {f}"))
    return Step("mlp", tuple(mlp))


def _latent_attention(rank: ModelSpec, mla: LatentAttention, run: Profile, workspace: Buffer) -> Step:
    """Queries, and keys and values of earlier context made whole again."""
    t, h, e = run.tokens, rank.hidden_size, run.element_bytes
    if run.latent != "row":
        early = early_attention(run.latent, mla, heads=rank.num_attention_heads, tokens=t, element_bytes=e)
        return Step("attention", (*early, Buffer("hidden states", run.hidden_copies * e * t * h, "{c} × {e} × {T} × {h}"), workspace))
    return Step("attention", (
        Buffer("queries", e * t * rank.num_attention_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim), "{e} × {T} × {H} × ({n} + {p})"),
        Buffer("keys and values of earlier context", e * run.latent_rows * rank.num_attention_heads * (mla.qk_nope_head_dim + mla.v_head_dim),
               "{e} × {R} × {H} × ({n} + {v})"),
        Buffer("hidden states", run.hidden_copies * e * t * h, "{c} × {e} × {T} × {h}"),
        workspace,
    ))  # fmt: skip


def _chunk(run: Profile) -> int:
    """Tokens that the experts take at once."""
    tokens = run.tokens * run.gathered
    return tokens if run.workspaces_wide else min(tokens, EXPERT_CHUNK)


def experts_step(rank: ModelSpec, run: Profile, workspace: Buffer) -> list[Buffer]:
    """Buffers of the fused experts: each token k times, through gate and up, their product, and back to the hidden size.

    Source: vllm v0.8.5 layers/fused_moe/fused_moe.py L1295-1305 (first and last buffer share memory), v0.6.6 (they don't);
    v0.19.0 fused_moe.py L1976-1991, workspace_shapes. The router's float32 logits of 4 T E bytes are beside.
    """
    m, k, f, h, e, t = _chunk(run), rank.num_experts_per_tok, rank.expert_intermediate_size, rank.hidden_size, run.element_bytes, run.tokens
    inner, two = rank.expert_latent_size or h, 2 if family_of(rank).gated else 1
    first = two * f + inner if not run.experts_share else max(two * f, inner)
    second = max(f, inner) if run.workspaces_wide else f
    up, width = "2 × {F}" if two == 2 else "{F}", "{l}" if rank.expert_latent_size else "{h}"
    wide = f"({up} + {width})" if not run.experts_share else up if two * f >= inner else width
    shared = [Buffer("shared experts' output", e * t * h, "{e} × {T} × {h}")] if rank.shared_expert_intermediate_size else []
    gathered = [Buffer("hidden states of all copies", e * t * run.gathered * h, "{e} × {G} × {h}")] if run.gathered > 1 else []
    return [
        *shared, *gathered,
        Buffer("gate and up, and back" if two == 2 else "up, and back", e * m * k * first, "{e} × {m} × {k} × " + wide),
        Buffer("gate * up" if two == 2 else "activated", e * m * k * second, "{e} × {m} × {k} × " + ("{F}" if second == f else width)),
        Buffer("router logits", 4 * t * run.gathered * rank.num_experts, "4 × {G} × {E}"),
        Buffer("hidden states", run.hidden_copies * e * t * h, "{c} × {e} × {T} × {h}"),
        workspace,
    ]
