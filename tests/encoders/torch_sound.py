"""The sound autoencoder and BigVGAN in torch, written from their mathematics, with the names of the released files.

Everything is a function of a dictionary of tensors [out in frames], so what a name is used for can be read off here.
"""

import torch
from torch.nn import functional

DOUBLE = torch.float64


class TorchVae:
    """In and out: float64 tensors [b c t], in the network's own scale."""

    def __init__(self, tensors, settings):
        self.tensors = {name: tensor.to(DOUBLE) for name, tensor in tensors.items()}
        self.settings = settings
        self.levels = len(settings["ch_mult"])

    def encode(self, x):
        x = self._same(x, "encoder.conv_in")
        for level in range(self.levels):
            x = self._stage(x, f"encoder.down.{level}", level, self.settings["num_res_blocks"])
            if level in self.settings["down_layers"]:
                x = torch.cat([x, torch.zeros_like(x[..., :1])], -1)
                x = functional.conv1d(x, *self._pair(f"encoder.down.{level}.downsample.conv"), stride=2)
        x = self._last(self._middle(x, "encoder.mid"), "encoder")
        mean, log_variance = self._same(x, "quant_conv").chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z):
        x = self._middle(self._same(self._same(z, "post_quant_conv"), "decoder.conv_in"), "decoder.mid")
        for level in reversed(range(self.levels)):
            x = self._stage(x, f"decoder.up.{level}", level, self.settings["num_res_blocks"] + 1)
            if level - 1 in self.settings["down_layers"]:
                x = self._same(x.repeat_interleave(2, dim=-1), f"decoder.up.{level}.upsample.conv")
        return self._last(x, "decoder")

    def _pair(self, name):
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def _same(self, x, name):
        weight, bias = self._pair(name)
        return functional.conv1d(x, weight, bias, padding=weight.shape[-1] // 2)

    def _norm(self, x, name):
        return functional.group_norm(x, 32, *self._pair(name), eps=1e-6)

    def _block(self, x, name):
        y = self._same(functional.silu(self._norm(x, f"{name}.norm1")), f"{name}.conv1")
        y = self._same(functional.silu(self._norm(y, f"{name}.norm2")), f"{name}.conv2")
        return y + (self._same(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.tensors else x)

    def _attention(self, x, name):
        normed = self._norm(x, f"{name}.norm")
        q, k, v = (self._same(normed, f"{name}.{part}").transpose(1, 2) for part in ("q", "k", "v"))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self._same(y, f"{name}.proj_out")

    def _stage(self, x, name, level, blocks):
        for layer in range(blocks):
            x = self._block(x, f"{name}.block.{layer}")
            if level in self.settings["attn_layers"]:
                x = self._attention(x, f"{name}.attn.{layer}")
        return x

    def _middle(self, x, name):
        return self._block(self._attention(self._block(x, f"{name}.block_1"), f"{name}.attn_1"), f"{name}.block_2")

    def _last(self, x, half):
        return self._same(functional.silu(self._norm(x, f"{half}.norm_out")), f"{half}.conv_out")


class TorchVocoder(torch.nn.Module):
    """BigVGAN with weight norm by torch itself; in: [b bins t], out: [b samples]."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        widths = [settings["upsample_initial_channel"] // 2**i for i in range(len(settings["upsample_rates"]) + 1)]
        normed, conv = torch.nn.utils.weight_norm, torch.nn.Conv1d
        self.conv_pre = normed(conv(settings["num_mels"], widths[0], 7, padding=3))
        self.ups = torch.nn.ModuleList(
            torch.nn.ModuleList([normed(torch.nn.ConvTranspose1d(i, o, k, u, padding=(k - u) // 2))])
            for i, o, u, k in zip(widths, widths[1:], settings["upsample_rates"], settings["upsample_kernel_sizes"])
        )
        self.resblocks = torch.nn.ModuleList(
            TorchBlock(settings, width, size, dilations)
            for width in widths[1:]
            for size, dilations in zip(settings["resblock_kernel_sizes"], settings["resblock_dilation_sizes"])
        )
        self.activation_post = TorchActivation(settings, widths[-1])
        self.conv_post = normed(conv(widths[-1], 1, 7, padding=3, bias=settings.get("use_bias_at_final", True)))

    def forward(self, x):
        x = self.conv_pre(x)
        count = len(self.settings["resblock_kernel_sizes"])
        for index, up in enumerate(self.ups):
            x = up[0](x)
            x = torch.stack([block(x) for block in self.resblocks[index * count : (index + 1) * count]]).mean(0)
        x = self.conv_post(self.activation_post(x))[:, 0]
        return torch.tanh(x) if self.settings.get("use_tanh_at_final", True) else x.clamp(-1, 1)


class TorchBlock(torch.nn.Module):
    def __init__(self, settings, width, size, dilations):
        super().__init__()
        pairs = settings["resblock"] == "1"
        dilations = dilations if pairs else dilations[:2]

        def convolutions(dilations):
            return torch.nn.ModuleList(
                torch.nn.utils.weight_norm(torch.nn.Conv1d(width, width, size, dilation=d, padding=d * (size // 2)))
                for d in dilations
            )

        if pairs:
            self.convs1, self.convs2 = convolutions(dilations), convolutions([1] * len(dilations))
            self.chains = [(2 * i, [*pair]) for i, pair in enumerate(zip(self.convs1, self.convs2))]
        else:
            self.convs = convolutions(dilations)
            self.chains = [(i, [one]) for i, one in enumerate(self.convs)]
        count = len(dilations) * (2 if pairs else 1)
        self.activations = torch.nn.ModuleList(TorchActivation(settings, width) for _ in range(count))

    def forward(self, x):
        for first, chain in self.chains:
            y = x
            for index, convolution in enumerate(chain, start=first):
                y = convolution(self.activations[index](y))
            x = x + y
        return x


class TorchActivation(torch.nn.Module):
    """Zeros between the samples, a low-pass filter, the activation, the filter again, every other sample.

    The ends of a signal are continued so far that no filter sees where they end.
    """

    def __init__(self, settings, width):
        super().__init__()
        self.in_logs = settings["snake_logscale"]
        self.act = torch.nn.Module()
        self.act.alpha = torch.nn.Parameter(torch.ones(width))
        if settings["activation"] == "snakebeta":
            self.act.beta = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        taps = kaiser_sinc().to(x)
        length, margin = x.shape[-1], 16
        wide = functional.pad(x, (margin, margin), mode="replicate")
        sparse = torch.stack([wide, torch.zeros_like(wide)], -1).flatten(-2)
        dense = self._curve(2 * filtered(functional.pad(sparse, (6, 5)), taps))
        dense = dense[..., 2 * margin : 2 * (margin + length)]
        dense = functional.pad(dense, (5, 6), mode="replicate")
        return filtered(dense, taps)[..., ::2]

    def _curve(self, x):
        alpha, beta = self.act.alpha, getattr(self.act, "beta", self.act.alpha)
        if self.in_logs:
            alpha, beta = alpha.exp(), beta.exp()
        # sin^2 y = (1 - cos 2 y) / 2
        return x + (1 - torch.cos(2 * x * alpha[:, None])) / (2 * (beta[:, None] + 1e-9))


def filtered(x, taps):
    """Each channel of x [b c t] through the taps, t less 11 frames out."""
    return functional.conv1d(x.flatten(0, 1)[:, None], taps[None, None]).unflatten(0, x.shape[:2])[:, :, 0]


def kaiser_sinc():
    """12 taps of a low-pass filter at half of Nyquist's frequency, in float64."""
    from scipy.signal import firwin, kaiser_atten, kaiser_beta

    beta = kaiser_beta(kaiser_atten(6, 1.2))  # the attenuation is that of a filter of half as many taps
    return torch.tensor(firwin(12, 0.5, window=("kaiser", beta)), dtype=DOUBLE)
