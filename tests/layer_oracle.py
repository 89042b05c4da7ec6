"""Intra-LLM pruning as plain loops: no hooks, no cache, no padding, full attention matrices."""

from __future__ import annotations

import torch


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def block(layer, x, cos, sin, visible):
    """One decoder layer over x (n, D); `visible` (n, n). Returns states and attention averaged over heads."""
    attn, n = layer.self_attn, len(x)
    h = layer.input_layernorm(x)
    q, k, v = (getattr(attn, f"{name}_proj")(h).view(n, -1, attn.head_dim) for name in "qkv")
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    q, k = rotate(q, cos[:, None], sin[:, None]), rotate(k, cos[:, None], sin[:, None])
    group = q.shape[1] // k.shape[1]
    out, mean = [], 0
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T / attn.head_dim**0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out.append(weights @ v[:, head // group])
        mean = mean + weights / q.shape[1]
    x = x + attn.o_proj(torch.stack(out, 1).flatten(1))
    return x + layer.mlp(layer.post_attention_layernorm(x)), mean


def select_and_merge(x, attention, visual, pruner):
    """Rows of x that stay, and x with the merged states in place."""
    keep = sorted(
        sorted(visual, key=lambda i: -attention[i].item())[: max(1, round(len(visual) * pruner.retention_ratio))]
    )
    members = {i: [x[i]] for i in keep}
    for i in set(visual) - set(keep):
        cosines = [float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in keep]
        members[keep[cosines.index(max(cosines))]].append(x[i])
    merged = x.clone()
    for i, states in members.items():
        if len(states) > 1:
            merged[i] = pruner.merge_weight * x[i] + (1 - pruner.merge_weight) * torch.stack(states).mean(0)
    return [i for i in range(len(x)) if i not in visual or i in keep], merged


def run(decoder, embeds, is_visual, pruner, *, query=None, positions=None):
    """States (n, D) after the norm of what stays of embeds (n, D), and its rows.

    `is_visual` (S,) describes the prompt; what follows it are tokens generated since.
    """
    n, S = len(embeds), len(is_visual)
    query = S - 1 if query is None else query
    positions = torch.arange(n)[None] if positions is None else positions
    cos, sin = (c[0] for c in decoder.rotary_emb(embeds[None], positions))
    x, stays, attention = embeds, list(range(n)), None
    for i, layer in enumerate(decoder.layers):
        visual = [row for row, column in enumerate(stays) if column < S and is_visual[column]]
        if i in pruner.layers and visual:
            if pruner.reads == "own":
                _, attention = block(layer, x, cos, sin, torch.ones(len(x), len(x), dtype=torch.bool).tril())
            rows, merged = select_and_merge(x, attention[stays.index(query)], visual, pruner)
            x, cos, sin, stays = merged[rows], cos[rows], sin[rows], [stays[row] for row in rows]
        visible = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        if i == pruner.layer - 1 and pruner.noncausal_layer:
            visible[:S, :S] = True
        x, attention = block(layer, x, cos, sin, visible)
    return decoder.norm(x), stays


@torch.no_grad()
def greedy(model, short, row, pruner, steps):
    """Greedy ids of one shortened prompt."""
    attended = short.attention_mask[row].bool()
    embeds, is_visual = short.inputs_embeds[row, attended], short.is_video[row, attended]
    new = []
    for _ in range(steps):
        states, _ = run(model.model.language_model, embeds, is_visual, pruner)
        new.append(int(model.lm_head(states[-1]).argmax()))
        if new[-1] == model.generation_config.eos_token_id:
            break
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(new[-1:]))])
    return new
