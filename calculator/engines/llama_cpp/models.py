"""The graph of one micro-batch, from token ids to logits.

Source: llama.cpp @0c1e57098 src/llama-graph.cpp (build_inp_embd L2376) and src/models/*.cpp, a file a family.
"""

from __future__ import annotations

from calculator.engines.llama_cpp.experts import Experts
from calculator.engines.llama_cpp.families import Layer
from calculator.engines.llama_cpp.graph import F32, I32, Graph, Tensor
from calculator.engines.llama_cpp.latent import LatentSelfAttention


class Builder(Experts, LatentSelfAttention):
    """Builds one graph."""

    def build(self) -> Graph:
        """The whole pass."""
        g, m, b, family = self.g, self.m, self.b, self.family
        tokens = g.input("inp_tokens", I32, b.tokens)
        x = g.get_rows("embd", self.weight("token_embd", m.hidden, m.vocabulary), tokens)
        g.forward(x)
        if b.release.embedding_input:
            g.forward(g.input("inp_embd", F32, m.hidden, b.tokens))
        if family.embedding_scaled:
            x = g.like("inp_scaled", "scale", x)
        positions = g.input("inp_pos", I32, b.tokens)
        if family.temperature or family.scaled_by_position:
            self.scales = g.input("attn_scale", F32, 1, 1, b.tokens)
        inputs = [self.latent_inputs(self.caches[0])] if m.latent else [self.attention_inputs(cache) for cache in self.caches[: 1 + m.two_caches]]
        out_ids = g.input("out_ids", I32, b.outputs)
        for i, layer in enumerate(self.layers):
            self.enter(layer)
            normed = self.norm("attn_norm", x) if family.input_norms else x
            own = inputs[layer.kind.windowed]
            cur = self.latent_attention(normed, positions, own, layer) if m.latent else self.attention(normed, positions, own, layer)
            if i == len(self.layers) - 1 and not family.late_outputs:
                cur, x = g.get_rows("attn_out", cur, out_ids), g.get_rows("layer_inp", x, out_ids)
                normed = g.get_rows("attn_norm", normed, out_ids) if family.parallel else normed
            x = self.beside(cur, x, normed) if family.parallel else self.feed_forward(cur, x, layer)
            x.ends_layer = True
        if family.late_outputs:
            x.is_output = True
            x = g.get_rows("h_nextn", x, out_ids)
        self.enter(self.output)
        cur = self.norm("result_norm", x, pin=False)
        cur.is_output = True
        cur = g.mul_mat("result_output", self.weight("output", m.hidden, m.vocabulary), cur)
        if m.head_bias:
            cur = g.like("result_output", "add", cur, self.weight("output.bias", m.vocabulary, fmt=F32))
        if family.logits_scaled:
            cur = g.like("result_output", "scale", cur)
        if family.logit_softcap:
            cur = self.softcap("result_output", cur)
        cur.is_output = True
        g.forward(cur)
        return g

    def beside(self, cur: Tensor, x: Tensor, normed: Tensor) -> Tensor:
        """Attention and a feed-forward that reads what attention reads, both added to the residual."""
        return self.g.like("l_out", "add", self.g.like("l_out", "add", self.dense(normed), x), cur)

    def feed_forward(self, cur: Tensor, x: Tensor, layer: Layer) -> Tensor:
        """Both residual sums and what lies between; experts where the layer has some."""
        g, family = self.g, self.family
        if family.post_norms:
            cur = self.norm("attn_post_norm", cur)
        if family.residual_scaled:
            cur = g.like("attn_out", "scale", cur)
        residual = g.like("ffn_inp", "add", cur, x)
        cur = self.norm("ffn_norm", residual) if family.input_norms else residual
        cur = self.routed(cur, layer) if layer.kind.sparse else self.dense(cur)
        if family.post_norms:
            cur = self.norm("ffn_post_norm", cur, pin=family.post_norm_pinned)
        if family.residual_scaled:
            cur = g.like("ffn_out", "scale", cur)
        a, b = (residual, cur) if family.residual_first else (cur, residual)
        return g.like("l_out", "add", a, b)
