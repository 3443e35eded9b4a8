"""Self-attention as nodes: query, key and value, the cache, scores or one kernel, the output projection.

Source: llama.cpp @0c1e57098 src/llama-graph.cpp (build_qkv L1647, build_attn L2868 and L3115, build_attn_mha L2616,
build_attn_inp_kv_impl L2835), src/llama-kv-cache.cpp (get_k L1276 to build_input_v_rot L1468), src/llama-impl.h
llama_mul_mat_hadamard L57; CUDA's scratch behind a kernel's result: ggml-cuda/fattn-common.cuh L53, fattn.cu L722.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.llama_cpp.families import Base, Cache, Layer
from calculator.engines.llama_cpp.graph import F16, F32, I64, Tensor
from calculator.units import align_up

_NO_PLAIN_NORM = 128  # experts of the one Llama 4 that has none: src/models/llama4.cpp use_kq_norm
_MASK_ROWS = 64  # GGML_KQ_MASK_PAD, until 2025


class Inputs(NamedTuple):
    """What attention layers of one kind read beside the hidden states."""

    cache: Cache
    k_rows: Tensor | None
    v_rows: Tensor | None
    mask: Tensor
    k_rot: Tensor | None
    v_rot: Tensor | None


class Attention(Base):
    """Builds the attention of each layer."""

    def attention_inputs(self, cache: Cache) -> Inputs:
        """Row indices, mask and rotations of one cache."""
        g, m, b = self.g, self.m, self.b
        k_rows = v_rows = None
        if b.release.row_indices:
            k_rows = g.input("attn_inp_k_idxs", I64, b.tokens)
            v_rows = g.input("attn_inp_v_idxs", I64, b.tokens if b.flash else b.tokens * m.kv_heads * m.head_dim)
        rows, cast = b.tokens // cache.streams, b.release.mask_cast
        if cast:
            rows = align_up(rows, _MASK_ROWS)
        mask = g.input("attn_inp_kq_mask", F16 if b.flash and not cast else F32, cache.cells, rows, 1, cache.streams)
        if cast and b.flash:
            mask = g.new("attn_inp_kq_mask (f16)", "cpy", mask.ne, mask, fmt=F16)
        k_rot = v_rot = None
        if b.release.rotates and m.head_dim % 64 == 0:
            if cache.type_k.block_elements > 1:
                r = (m.head_dim & -m.head_dim)
                k_rot = g.input("attn_inp_k_rot", F32, r, r)
            if cache.type_v.block_elements > 1:
                v_rot = g.input("attn_inp_v_rot", F32, 64, 64)
        return Inputs(cache, k_rows, v_rows, mask, k_rot, v_rot)

    def rotate(self, x: Tensor, rot: Tensor | None) -> Tensor:
        """Multiply by a Hadamard matrix."""
        if rot is None:
            return x
        g, n = self.g, rot.ne[0]
        elements = x.ne[0] * x.ne[1] * x.ne[2] * x.ne[3]
        is_whole = x.nb[1] == 4 * x.ne[0] and x.nb[2] == x.nb[1] * x.ne[1]
        flat = g.reshape(x, n, elements // n) if is_whole else g.new(x.name, "cont", (n, elements // n), x)
        return g.reshape(g.mul_mat(x.name, rot, flat), *x.ne)

    def qkv(self, cur: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value with a dimension of heads."""
        g, m, b = self.g, self.m, self.b
        d = m.head_dim
        sizes = {"Qcur": ("attn_q", m.heads), "Kcur": ("attn_k", m.kv_heads), "Vcur": ("attn_v", m.kv_heads)}
        found = []
        if self.family.fused_qkv:
            whole = g.mul_mat("wqkv", self.weight("attn_qkv", m.hidden, d * (m.heads + 2 * m.kv_heads)), cur)
            if m.qkv_bias:
                whole = g.like("wqkv", "add", whole, self.weight("attn_qkv.bias", whole.ne[0], fmt=F32))
            for _, heads in sizes.values():
                found.append(g.view(whole, (d, heads, b.tokens, 1), (4, 4 * d, whole.nb[1], whole.nb[2])))
        else:
            for name, (weight, heads) in sizes.items():
                t = g.mul_mat(name, self.weight(weight, m.hidden, d * heads), cur)
                if m.qkv_bias:
                    t = g.like(name, "add", t, self.weight(weight + ".bias", d * heads, fmt=F32))
                if self.family.whole_qk_norm and name != "Vcur":
                    t = self.norm(name + "_normed", t)
                found.append(g.reshape(t, d, heads, b.tokens))
        q, k, v = found
        return q, k, v

    def attention(self, cur: Tensor, positions: Tensor, inputs: Inputs, layer: Layer) -> Tensor:
        """Self-attention with the cache, up to the output projection."""
        g, m, family = self.g, self.m, self.family
        q, k, v = self.qkv(cur)
        factors = (self.rope_factors(),) if m.rope_factors else ()
        if family.qk_norm or m.head_norms:
            q, k = self.norm("Qcur_normed", q), self.norm("Kcur_normed", k)
        if layer.kind.rotated:
            q, k = g.like("Qcur", "rope", q, positions, *factors), g.like("Kcur", "rope", k, positions, *factors)
        if self.scales is not None and not (family.temperature and layer.kind.rotated):
            q = g.like("Qcur", "mul", q, self.scales)
        if family.late_qk_norm:
            q, k = self.norm("Qcur_normed", q), self.norm("Kcur_normed", k)
        if family.plain_qk_norm and m.experts != _NO_PLAIN_NORM and layer.kind.rotated:
            q, k = g.like("Qcur_normed", "rms_norm", q), g.like("Kcur_normed", "rms_norm", k)
        if family.q_scaled:
            q = g.like("Qcur", "scale", q)
        q, k, v = self.rotate(q, inputs.k_rot), self.rotate(k, inputs.k_rot), self.rotate(v, inputs.v_rot)
        for t in (q, k, v) if m.two_caches or self.b.release.key_before_value else (q, v, k):
            g.forward(t)
        keys, values = self.stored(k, v, inputs, layer)
        cur = self.attend(q, keys, values, inputs)
        cur = self.rotate(cur, inputs.v_rot)
        cur = g.mul_mat("attn_out", self.weight("attn_output", m.heads * m.head_dim, m.hidden), cur)
        if m.output_bias:
            cur = g.like("attn_out", "add", cur, self.weight("attn_output.bias", m.hidden, fmt=F32))
        return cur

    def sinks(self) -> tuple[Tensor, ...]:
        """A logit a head that each softmax has beside the scores."""
        return (self.weight("attn_sinks", self.m.heads, fmt=F32),) if self.family.sinks else ()

    def rope_factors(self) -> Tensor:
        """The one tensor that all layers of a place share, and with it one copy on each GPU that reads the host's."""
        home = self.moved.get("rope_freqs", self.home)
        if home not in self.shared:
            self.shared[home] = self.weight("rope_freqs", self.m.head_dim // 2, fmt=F32)
        return self.shared[home]

    def stored(self, k: Tensor, v: Tensor, inputs: Inputs, layer: Layer) -> tuple[Tensor, Tensor]:
        """Write keys and values into the cache, and see all of it. Without flash attention values lie transposed."""
        g, m, b = self.g, self.m, self.b
        cells, streams, type_k, type_v = inputs.cache
        d, heads = m.head_dim, m.kv_heads
        row = d * heads
        cache_k = g.resident("cache_k", type_k, layer.cache_home, row, cells, streams, weight=False)
        cache_v = g.resident("cache_v", type_v, layer.cache_home, row, cells, streams, weight=False)

        def rows(t: Tensor) -> Tensor:
            return g.view(t, (row, b.tokens, 1, 1), (4, t.nb[2], t.nb[2] * b.tokens, t.nb[2] * b.tokens))

        def all_streams(t: Tensor) -> Tensor:
            return g.reshape(t, row, cells * streams) if streams > 1 else t

        if inputs.k_rows is None or inputs.v_rows is None:
            for t, cache in ((k, cache_k), (v, cache_v)):
                g.forward(g.copy_into(cache, rows(t) if b.flash or t is k else g.swap(rows(t), 0, 1, "transpose")))
            return self.seen(cache_k, cache_v, inputs.cache)
        g.forward(g.set_rows(all_streams(cache_k), rows(k), inputs.k_rows))
        if b.flash:
            g.forward(g.set_rows(all_streams(cache_v), rows(v), inputs.v_rows))
        else:
            flat = g.reshape(v, row, b.tokens) if v.nb[2] == 4 * row else g.new("Vcur", "cont", (row, b.tokens), v)
            elements = g.reshape(cache_v, 1, row * cells * streams)
            g.forward(g.set_rows(elements, g.reshape(flat, 1, row * b.tokens), inputs.v_rows))
        return self.seen(cache_k, cache_v, inputs.cache)

    def seen(self, cache_k: Tensor, cache_v: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """The whole cache as heads."""
        g, d, heads = self.g, self.m.head_dim, self.m.kv_heads
        cells, streams, type_k, type_v = cache
        row = d * heads
        keys = g.view(cache_k, (d, heads, cells, streams), (type_k.block_bytes, type_k.nbytes(d), type_k.nbytes(row), cache_k.nb[2]))
        if self.b.flash:
            values = g.view(cache_v, (d, heads, cells, streams), (type_v.block_bytes, type_v.nbytes(d), type_v.nbytes(row), cache_v.nb[2]))
        else:
            values = g.view(cache_v, (cells, heads, d, streams), (type_v.block_bytes, type_v.nbytes(cells * d), type_v.nbytes(cells), cache_v.nb[2]))
        return keys, values

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        """Scores, softmax and weighted values, in one kernel or in three steps."""
        g, b = self.g, self.b
        streams = k.ne[3]
        per = b.tokens // streams
        q = g.view(q, (q.ne[0], q.ne[1], per, streams), (4, q.nb[1], q.nb[2], q.nb[2] * per))
        q, k, v = g.swap(q, 1, 2), g.swap(k, 1, 2), g.swap(v, 1, 2)
        if b.flash:
            k, v = (g.new("K (f16)" if t is k else "V (f16)", "cpy", t.ne, t, fmt=F16) if t.fmt is F32 else t for t in (k, v))
            cur = g.new("kqv_out", "flash_attn", (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), q, k, v, inputs.mask, *self.sinks())
            cur.scratch = converted(cur, k, v) if b.release.scratch else 0
            cur = g.reshape(cur, cur.ne[0] * cur.ne[1], b.tokens)
            g.forward(cur)
            return cur
        scores = g.mul_mat("kq", k, q)
        if self.family.attention_softcap:
            scores = self.softcap("kq", scores)
        scores = g.like("kq_soft_max", "soft_max", scores, inputs.mask, *self.sinks())
        cur = g.swap(g.mul_mat("kqv", v, scores), 1, 2)
        cur = g.new("kqv_out", "cont", (cur.ne[0] * cur.ne[1], b.tokens), cur)
        if b.attend_on_host:
            cur.pinned = self.host
        g.forward(cur)
        return cur


def converted(result: Tensor, *parts: Tensor) -> int:
    """Bytes behind CUDA's result for 16-bit copies of K and V, where they are kept in another type; aligned to 128."""
    end = result.nbytes
    for t in parts:
        if t.fmt is not F16:
            end = align_up(end, 128) + 2 * t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3]
    return end - result.nbytes
