"""Latent attention as nodes: one compressed row a token is the key and the value of all heads.

Source: llama.cpp @0c1e57098 src/models/deepseek2.cpp graph; src/llama-graph.cpp build_attn of llm_graph_input_attn_k L2966.
"""

from __future__ import annotations

from calculator.engines.llama_cpp.attention import Attention, Inputs, converted
from calculator.engines.llama_cpp.families import Cache, Layer
from calculator.engines.llama_cpp.graph import F16, F32, I64, Tensor


class LatentSelfAttention(Attention):
    """Builds the latent attention of each layer."""

    def latent_inputs(self, cache: Cache) -> Inputs:
        """Row indices and mask; nothing is rotated."""
        g, b = self.g, self.b
        rows = g.input("attn_inp_k_idxs", I64, b.tokens)
        mask = g.input("attn_inp_kq_mask", F16 if b.flash else F32, cache.cells, b.tokens // cache.streams, 1, cache.streams)
        return Inputs(cache, rows, None, mask, None, None)

    def latent_query(self, cur: Tensor) -> Tensor:
        """Queries of all heads, through a low rank in larger models."""
        g, m, own = self.g, self.m, self.m.latent
        assert own is not None
        width = m.heads * (own.nope + own.rope)
        if not own.q_rank:
            return g.mul_mat("q", self.weight("attn_q", m.hidden, width), cur)
        low = self.norm("q", g.mul_mat("q", self.weight("attn_q_a", m.hidden, own.q_rank), cur))
        return g.mul_mat("q", self.weight("attn_q_b", own.q_rank, width), low)

    def latent_attention(self, cur: Tensor, positions: Tensor, inputs: Inputs, layer: Layer) -> Tensor:
        """Self-attention over the compressed rows, up to the output projection."""
        g, m, own, n = self.g, self.m, self.m.latent, self.b.tokens
        assert own is not None
        wide = own.rank + own.rope
        q = g.reshape(self.latent_query(cur), own.nope + own.rope, m.heads, n)
        both = g.mul_mat("kv_cmpr_pe", self.weight("attn_kv_a_mqa", m.hidden, wide), cur)
        whole = 4 * wide * n
        row = g.view(both, (own.rank, n, 1, 1), (4, 4 * wide, whole, whole))
        key = g.view(both, (own.rope, 1, n, 1), (4, 4 * wide, 4 * wide, whole))
        key = g.like("k_pe", "rope", key, positions)
        row = g.reshape(self.norm("kv_cmpr", row), own.rank, 1, n)
        nope = g.swap(g.view(q, (own.nope, m.heads, n, 1), q.nb), 1, 2)
        rotary = g.like("q_pe", "rope", g.view(q, (own.rope, m.heads, n, 1), q.nb), positions)
        absorbed = g.swap(g.mul_mat("q_nope_absorbed", self.weight("attn_k_b", own.nope, own.rank, m.heads), nope), 1, 2)
        q = g.new("Qcur", "concat", (wide, m.heads, n), absorbed, rotary)
        k = g.new("Kcur", "concat", (wide, 1, n), row, key)
        for t in (q, row, k):
            g.forward(t)
        cells, streams, fmt, _ = inputs.cache
        cache = g.resident("cache_k", fmt, layer.cache_home, wide, cells, streams, weight=False)
        assert inputs.k_rows is not None
        rows = g.view(k, (wide, n, 1, 1), (4, k.nb[2], k.nb[2] * n, k.nb[2] * n))
        g.forward(g.set_rows(g.reshape(cache, wide, cells * streams) if streams > 1 else cache, rows, inputs.k_rows))
        keys = g.view(cache, (wide, 1, cells, streams), (fmt.block_bytes, fmt.nbytes(wide), fmt.nbytes(wide), cache.nb[2]))
        values = g.view(keys, (own.rank, *keys.ne[1:]), keys.nb)
        cur = self.decompressed(q, keys, values, inputs)
        return g.mul_mat("attn_out", self.weight("attn_output", m.heads * own.value, m.hidden), cur)

    def decompressed(self, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        """Scores and weighted rows, then each head's values from them."""
        g, b, own, heads = self.g, self.b, self.m.latent, self.m.heads
        assert own is not None
        streams = k.ne[3]
        per = b.tokens // streams
        q = g.view(q, (q.ne[0], q.ne[1], per, streams), (4, q.nb[1], q.nb[2], q.nb[2] * per))
        q, k, v = g.swap(q, 1, 2), g.swap(k, 1, 2), g.swap(v, 1, 2)
        matrix = self.weight("attn_v_b", own.rank, own.value, heads)
        if b.flash:
            k, v = (g.new(name, "cpy", t.ne, t, fmt=F16) if t.fmt is F32 else t for name, t in (("K (f16)", k), ("V (f16)", v)))
            cur = g.new("kqv_out", "flash_attn", (v.ne[0], heads, per, streams), q, k, v, inputs.mask)
            cur.scratch = converted(cur, k)  # values are a part of the keys
            cur = g.swap(g.mul_mat("fattn_mla", matrix, g.swap(cur, 1, 2)), 1, 2)
            cur = g.like("kqv_out", "cont", cur)
            cur = g.reshape(cur, cur.ne[0] * cur.ne[1], b.tokens)
            g.forward(cur)
            return cur
        scores = g.like("kq_soft_max", "soft_max", g.mul_mat("kq", k, q), inputs.mask)
        v = g.new("v_cont", "cont", (v.ne[1], v.ne[0], *v.ne[2:]), g.swap(v, 0, 1, "transpose"), fmt=v.fmt)
        cur = g.swap(g.mul_mat("kqv_mla", matrix, g.mul_mat("kqv", v, scores)), 1, 2)
        cur = g.new("kqv_out", "cont", (cur.ne[0] * cur.ne[1], b.tokens), cur)
        if b.attend_on_host:
            cur.pinned = self.host
        g.forward(cur)
        return cur
