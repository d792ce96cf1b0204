"""The authors' text-conditional models in plain numpy, in their terms: lists of pictures, padded to one length.

Written after `lumina_t2i/models/model.py` (Flag-DiT) and `lumina_next_t2i_mini/models/nextdit.py` (Next-DiT), and
shares nothing with ours. Only what `model(list of pictures, t, cap_feats, cap_mask)` computes.
"""

import numpy as np
from scipy.special import softmax

PATCH = 2


class Released:
    """A model of their constructor's arguments and state_dict."""

    def __init__(self, config, weights):
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.heads, self.layers = config["n_heads"], config["n_layers"]
        self.is_next = "layers.0.attention_norm1.weight" in weights

    def __call__(self, pictures, t, features, mask):
        x, kept, sizes = self.padded(pictures)
        angles = [self.angles(*size, x.shape[1]) for size in sizes]
        mask, pooled = mask.astype(bool), (features * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        pooled = self.linear("cap_embedder.1", self.layer_norm("cap_embedder.0", pooled))
        condition = silu(self.time(t) + pooled)
        for layer in range(self.layers):
            x = self.block(f"layers.{layer}", x, kept, np.stack(angles), features, mask, condition)
        x = self.modulated(
            normed(x, 1e-6), *np.split(self.linear("final_layer.adaLN_modulation.1", condition), 2 - self.is_next, -1)
        )
        x = self.linear("final_layer.linear", x)
        return [self.picture(tokens, *size) for tokens, size in zip(x, sizes)]

    def padded(self, pictures):
        """Tokens of each picture, [eol] after its rows where there is one, and pad_token up to the longest."""
        rows, sizes = [], []
        for picture in pictures:
            channels, height, width = picture.shape
            down, across = height // PATCH, width // PATCH
            patches = picture.reshape(channels, down, PATCH, across, PATCH).transpose(1, 3, 0, 2, 4)
            tokens = self.linear("x_embedder", patches.reshape(down, across, -1))
            if not self.is_next:
                line = np.broadcast_to(self.weights["eol_token"], (down, 1, tokens.shape[-1]))
                tokens = np.concatenate([tokens, line], 1)
            rows.append(tokens.reshape(-1, tokens.shape[-1]))
            sizes.append((down, across))
        longest = max(map(len, rows))
        padding = [np.broadcast_to(self.weights["pad_token"], (longest - len(row), row.shape[-1])) for row in rows]
        kept = np.stack([np.arange(longest) < len(row) for row in rows])
        return np.stack([np.concatenate(pair) for pair in zip(rows, padding)]), kept, sizes

    def angles(self, down, across, length):
        head = len(self.weights["x_embedder.bias"]) // self.heads
        if not self.is_next:
            return np.outer(np.arange(length), 10_000.0 ** -(np.arange(0, head, 2) / head))
        speeds = 10_000.0 ** -(np.arange(0, head, 4) / head)
        row, column = (axis.reshape(-1, 1) * speeds for axis in np.mgrid[:down, :across])
        angles = np.stack([row, column], -1).reshape(down * across, -1)
        return np.concatenate([angles, np.zeros((length - len(angles), angles.shape[1]))])

    def time(self, t):
        angles = np.outer(t, np.exp(-np.log(10_000) * np.arange(128) / 128))
        inner = self.linear("t_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)], -1))
        return self.linear("t_embedder.mlp.2", silu(inner))

    def block(self, name, x, kept, angles, features, mask, condition):
        parts = self.linear(f"{name}.adaLN_modulation.1", condition)
        y = self.rms_norm(f"{name}.attention_y_norm", features)
        if self.is_next:
            scale, gate, mlp_scale, mlp_gate = (part[:, None] for part in np.split(parts, 4, -1))
            inner = self.rms_norm(f"{name}.attention_norm1", x) * (1 + scale)
            inner = self.attention(f"{name}.attention", inner, kept, angles, y, mask)
            x = x + np.tanh(gate) * self.rms_norm(f"{name}.attention_norm2", inner)
            inner = self.feed_forward(name, self.rms_norm(f"{name}.ffn_norm1", x) * (1 + mlp_scale))
            return x + np.tanh(mlp_gate) * self.rms_norm(f"{name}.ffn_norm2", inner)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(parts, 6, -1)
        inner = self.modulated(self.rms_norm(f"{name}.attention_norm", x), shift, scale)
        x = x + gate[:, None] * self.attention(f"{name}.attention", inner, kept, angles, y, mask)
        inner = self.modulated(self.rms_norm(f"{name}.ffn_norm", x), mlp_shift, mlp_scale)
        return x + mlp_gate[:, None] * self.feed_forward(name, inner)

    def attention(self, name, x, kept, angles, y, mask):
        query = self.apart(self.layer_norm(f"{name}.q_norm", self.linear(f"{name}.wq", x)))
        key = self.apart(self.layer_norm(f"{name}.k_norm", self.linear(f"{name}.wk", x)))
        text_key = self.apart(self.layer_norm(f"{name}.ky_norm", self.linear(f"{name}.wk_y", y)))
        query, key = turned(query, angles), turned(key, angles)
        found = attended(query, key, self.apart(self.linear(f"{name}.wv", x)), kept)
        text = attended(query, text_key, self.apart(self.linear(f"{name}.wv_y", y)), mask)
        found = found + text * np.tanh(self.weights[f"{name}.gate"])[:, None, None]
        return self.linear(f"{name}.wo", found.transpose(0, 2, 1, 3).reshape(x.shape))

    def apart(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

    def feed_forward(self, name, x):
        name = f"{name}.feed_forward"
        return self.linear(f"{name}.w2", silu(self.linear(f"{name}.w1", x)) * self.linear(f"{name}.w3", x))

    def picture(self, tokens, down, across):
        columns = across + (not self.is_next)
        values = tokens[: down * columns].reshape(down, columns, PATCH, PATCH, -1)[:, :across]
        whole = values.transpose(4, 0, 2, 1, 3).reshape(-1, PATCH * down, PATCH * across)
        return whole[: len(whole) // 2]

    def modulated(self, x, *parts):
        *shift, scale = parts
        return x * (1 + scale[:, None]) + (shift[0][:, None] if shift else 0)

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def layer_norm(self, name, x):
        return normed(x, 1e-5) * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def rms_norm(self, name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * self.weights[f"{name}.weight"]


def normed(x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def silu(x):
    return x / (1 + np.exp(-x))


def turned(x, angles):
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def attended(query, key, value, allowed):
    logits = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    return softmax(np.where(allowed[:, None, None], logits, -np.inf), axis=-1) @ value
