"""Tensors of a sound autoencoder and of a vocoder under their released names: shapes, spelled out, and numbers that are
always the same ones; tests/golden/sounds/vae_and_vocoder.safetensors holds the answers to its spectrograms and latents.
"""

import itertools
import math

import numpy as np

CHANNELS = 4
VAE = {"double_z": True, "in_channels": 80, "out_ch": 80, "z_channels": 6, "kernel_size": 5, "ch": 32}
VAE |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_layers": [1], "down_layers": [0], "dropout": 0.0}
VOCODER = {"resblock": "1", "num_mels": 80, "upsample_initial_channel": 8, "upsample_rates": [16, 16]}
VOCODER |= {"upsample_kernel_sizes": [32, 16], "resblock_kernel_sizes": [3, 5], "activation": "snakebeta"}
VOCODER |= {"resblock_dilation_sizes": [[1, 3], [1, 3]], "snake_logscale": True, "sampling_rate": 16000}


def spectrograms():
    return np.random.default_rng(1).uniform(-11, 1, (2, 6, 80)).astype(np.float32)


def latents():
    return np.random.default_rng(2).standard_normal((2, 3, CHANNELS), np.float32)


def random_tensors(settings, channels):
    """Numbers about as large as those of a new network, so that what goes in neither dies out nor explodes."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in tensor_shapes_of_vae(settings, channels).items():
        scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
        numbers = scale * random.standard_normal(shape, np.float32) + (".norm" in name and "weight" in name)
        tensors[name] = numbers.astype(np.float32)
    return tensors


def tensor_shapes_of_vae(settings, channels):
    """Names and shapes of the tensors of an autoencoder."""
    ch, kernel = settings["ch"], settings["kernel_size"]
    widths = [ch * times for times in settings["ch_mult"]]
    shapes = {}

    def convolution(name, inputs, outputs, size):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, size), (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name, inputs, outputs, size):
        norm(f"{name}.norm1", inputs)
        convolution(f"{name}.conv1", inputs, outputs, size)
        norm(f"{name}.norm2", outputs)
        convolution(f"{name}.conv2", outputs, outputs, size)
        if inputs != outputs:
            convolution(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", width, width, 1)

    def half(name, inputs, outputs, start, order, blocks, size, resampling, levels):
        convolution(f"{name}.conv_in", inputs, start, kernel)
        kind = "down" if name == "encoder" else "up"
        width = start
        for level in order:
            for layer in range(blocks):
                block(f"{name}.{kind}.{level}.block.{layer}", width, widths[level], size)
                width = widths[level]
                if level in settings["attn_layers"]:
                    attention(f"{name}.{kind}.{level}.attn.{layer}", width)
            if level in levels:
                convolution(f"{name}.{kind}.{level}.{resampling}.conv", width, width, 3)
        block(f"{name}.mid.block_1", widths[-1], widths[-1], size)
        attention(f"{name}.mid.attn_1", widths[-1])
        block(f"{name}.mid.block_2", widths[-1], widths[-1], size)
        norm(f"{name}.norm_out", width)
        convolution(f"{name}.conv_out", width, outputs, kernel)

    count, down, z = len(widths), settings["down_layers"], settings["z_channels"]
    layers, bins = settings["num_res_blocks"], settings["in_channels"]
    half("encoder", bins, 2 * z, ch, range(count), layers, kernel, "downsample", down)
    half("decoder", z, bins, widths[-1], range(count)[::-1], layers + 1, 3, "upsample", [d + 1 for d in down])
    convolution("quant_conv", 2 * z, 2 * channels, 1)
    convolution("post_quant_conv", channels, z, 1)
    return shapes


def random_vocoder(settings):
    """Tensors of a BigVGAN with weight norm as stored before PyTorch 2.1, that make neither silence nor noise."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in tensor_shapes_of_vocoder(settings).items():
        numbers = random.standard_normal(shape, np.float32)
        if name.endswith("weight_g"):
            numbers = 0.3 + np.abs(numbers) / 4
        elif ".act." in name:
            numbers = numbers / 2 if settings["snake_logscale"] else np.abs(numbers) + 0.2
        tensors[name] = numbers.astype(np.float32)
    return tensors


def tensor_shapes_of_vocoder(settings):
    """Names and shapes of the tensors of a BigVGAN, without its filters."""
    shapes = {}
    widths = [settings["upsample_initial_channel"] // 2**step for step in range(len(settings["upsample_rates"]) + 1)]

    def convolution(name, first, second, size, *, outputs):
        shapes[f"{name}.weight_g"] = (first, 1, 1)
        shapes[f"{name}.weight_v"] = (first, second, size)
        shapes[f"{name}.bias"] = (outputs,)

    def activation(name, width):
        for part in ("alpha", "beta") if settings["activation"] == "snakebeta" else ("alpha",):
            shapes[f"{name}.act.{part}"] = (width,)

    convolution("conv_pre", widths[0], settings["num_mels"], 7, outputs=widths[0])
    convolution("conv_post", 1, widths[-1], 7, outputs=1)
    activation("activation_post", widths[-1])
    layer = 0
    for step, (before, width) in enumerate(itertools.pairwise(widths)):
        convolution(f"ups.{step}.0", before, width, settings["upsample_kernel_sizes"][step], outputs=width)
        for size, dilations in zip(settings["resblock_kernel_sizes"], settings["resblock_dilation_sizes"]):
            for index in range(len(dilations)):
                for half in ("convs1", "convs2"):
                    convolution(f"resblocks.{layer}.{half}.{index}", width, width, size, outputs=width)
            for index in range(2 * len(dilations)):
                activation(f"resblocks.{layer}.activations.{index}", width)
            layer += 1
    return shapes
