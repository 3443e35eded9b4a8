"""What a recurrent layer holds in the profiling run: its projections and outputs. The scan itself doesn't run.

Without attention metadata, as in that run, the layer's custom operation returns before the scan; since 0.19 it runs once over
64 tokens, for its kernels to be tuned.

Source: vllm v0.11.0 model_executor/models/qwen3_next.py L393-403, layers/mamba/mamba_mixer2.py L539-548; v0.14.0 qwen3_next.py
L440-512, mamba_mixer2.py L508-598, layers/kda.py L186-237; v0.19.0 layers/mamba/gdn_linear_attn.py L489-682; v0.33.0
layers/mamba/gdn/qwen_gdn_linear_attn.py L1134-1210; v0.11.0 and v0.19.0 layers/mamba/short_conv.py L127-132, mamba_mixer.py forward: "V1 profile run";
v0.19.0 falcon_h1.py FalconH1ParallelHybrid.forward.
"""

from __future__ import annotations

from calculator.engines.releases import Release
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Step

DELTA_APART_SINCE: Release = (0, 11, 1)  # read in 0.11.2; in 0.11.0 the operation that returns at once holds the projections too
MAMBA_APART_SINCE: Release = (0, 12, 0)  # read there; in 0.11.2 the operation isn't compiled, so that its gated norm is in float32
INTERLEAVED = frozenset({"qwen3_next"})  # queries, keys, values and gates of a head group lie together, and are copied apart


def mixer_step(rank: ModelSpec, *, tokens: int, element_bytes: int, hidden_copies: int, release: Release, workspace: Buffer) -> Step | None:
    """Projections, output and normed output of one recurrent layer beside the hidden states; None where nothing runs.

    gated delta rule:  e T (2 K + 2 I) + 2 e T I + e c T h + workspace      (interleaved: e T (4 K + 5 I))
    Mamba 2:           e T (2 I + 2 G + H) + 2 e T C + e c T h + workspace  (until 0.11: e T C + 8 T I in place of 2 e T C, if that is more;
                       Falcon-H1, whose layers attend too: + e T h)
    short convolution: e T 5 I + e c T h + workspace                        gates and inputs, and what they are multiplied to
    Mamba 1:           e T 3 I + e c T h + workspace                        states and gates, and the states side by side
    Kimi Delta:        e T 6 I + 4 T I + e c T h + workspace                q, k, v, gate, output, normed; decay in float32
    lightning:         (3 e + 24) T I + 12 T I + e c T h + workspace        q, k, v as projected, in float32 and activated; output, scaled, weighed

    Lightning attention's operation doesn't return at once, but scans nothing: v0.11.2 and v0.19.0 layers/mamba/linear_attn.py
    MiniMaxText01LinearAttention._forward, v0.23.0 layers/mamba/linear/minimax_linear_attn.py L312-365, minimax_rms_norm/rms_norm_tp.py L169-180.

    K width of keys, I of values, G of B, H heads, C = I + 2 G channels of the convolution.       derived
    """
    state = rank.recurrent
    if state is None or (state.kind == "delta" and release < DELTA_APART_SINCE):
        return None
    t, e, inner = tokens, element_bytes, state.inner
    keys, channels = state.groups * state.state_size, state.conv_channels
    if state.kind == "delta" and rank.model_type in INTERLEAVED:
        own = [
            Buffer("queries, keys, values and gates", e * t * 2 * (keys + inner), "2 × {e} × {T} × ({K} + {I})"),
            Buffer("queries, keys and values side by side", e * t * (2 * keys + inner), "{e} × {T} × (2 × {K} + {I})"),
            Buffer("gates, and the output", 2 * e * t * inner, "2 × {e} × {T} × {I}"),
        ]
    elif state.kind == "delta":
        own = [
            Buffer("queries, keys, values and gates", e * t * 2 * (keys + inner), "2 × {e} × {T} × ({K} + {I})"),
            Buffer("output, and normed", 2 * e * t * inner, "2 × {e} × {T} × {I}"),
        ]
    elif state.kind == "mamba2":
        own = [
            Buffer("gate, states, B, C and time step", e * t * (inner + channels + state.heads), "{e} × {T} × ({I} + {C} + {H})"),
            Buffer("the convolution's inputs, twice", 2 * e * t * channels, "2 × {e} × {T} × {C}"),
        ]
        if release < MAMBA_APART_SINCE and 8 * inner > e * channels:
            own[1:] = [
                Buffer("the convolution's inputs", e * t * channels, "{e} × {T} × {C}"),
                Buffer("states times gates in float32", 8 * t * inner, "2 × 4 × {T} × {I}"),
            ]
    elif state.kind == "conv":
        own = [
            Buffer("gates and inputs", 3 * e * t * inner, "3 × {e} × {T} × {I}"),
            Buffer("their products", 2 * e * t * inner, "2 × {e} × {T} × {I}"),
        ]
    elif state.kind == "lightning":  # while the output is normed; while it is gated as much lives in 16 bits
        own = [
            Buffer("queries, keys and values, in float32 and activated", (3 * e + 24) * t * inner, "(3 × {e} + 24) × {T} × {I}"),
            Buffer("output in float32, scaled, and weighed", 12 * t * inner, "12 × {T} × {I}"),
        ]
    elif state.kind == "mamba":
        own = [
            Buffer("states and gates", 2 * e * t * inner, "2 × {e} × {T} × {I}"),
            Buffer("states side by side", e * t * inner, "{e} × {T} × {I}"),
        ]
    else:
        own = [
            Buffer("queries, keys, values and gate", 4 * e * t * inner, "4 × {e} × {T} × {I}"),
            Buffer("decay in float32", 4 * t * inner, "4 × {T} × {I}"),
            Buffer("output, and normed", 2 * e * t * inner, "2 × {e} × {T} × {I}"),
        ]
    if "both" in rank.layer_types:  # attention has run before, and waits for the other branch
        own.append(Buffer("attention's output", e * t * rank.hidden_size, "{e} × {T} × {h}"))
    hidden = Buffer("hidden states", hidden_copies * e * t * rank.hidden_size, "{c} × {e} × {T} × {h}")
    return Step("recurrent layer", (*own, hidden, workspace))
