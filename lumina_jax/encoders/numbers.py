"""Ranges of numbers in the configurations of encoders and autoencoders, as types for `lumina_jax.documents`.

The limits are far above those of every published network. A file beyond them is damaged and would exhaust memory.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

Count = Annotated[int, Ge(1), Le(2**20)]
"""A number of channels, heads or hidden units."""
VocabularySize = Annotated[int, Ge(1), Le(2**24)]
"""A number of words in a vocabulary, or of tokens in the longest caption."""
Layers = Annotated[int, Ge(1), Le(1024)]
NaturalNumber = Annotated[int, Ge(0), Le(2**24)]
Counts = Annotated[list[Annotated[int, Ge(1), Le(2**16)]], MinLen(1), MaxLen(16)]
"""A number of channels or units for each stage of a network."""
Indices = Annotated[list[Annotated[int, Ge(0), Le(64)]], MaxLen(64)]
Epsilon = Annotated[float, Gt(0), Le(1)]
ScalingFactor = Annotated[float, Ge(1e-6), Le(1e6)]
"""A factor of latents. It is neither 0 nor infinite, because latents are also divided by it."""
Shift = Annotated[float, Ge(-1e6), Le(1e6)]
Frequency = Annotated[float, Gt(0), Le(1e12)]
