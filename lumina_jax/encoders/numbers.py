"""What numbers in the configurations of encoders and autoencoders may be, as types for `lumina_jax.documents`.

The limits are far above every published network; beyond them a file is damaged, and would only exhaust memory.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

Count = Annotated[int, Ge(1), Le(2**20)]
"""Channels, heads, hidden units."""
Words = Annotated[int, Ge(1), Le(2**24)]
"""Of a vocabulary, and the longest caption in tokens."""
Layers = Annotated[int, Ge(1), Le(1024)]
Index = Annotated[int, Ge(0), Le(2**24)]
Counts = Annotated[list[Annotated[int, Ge(1), Le(2**16)]], MinLen(1), MaxLen(16)]
"""One for each stage of a network."""
Indices = Annotated[list[Annotated[int, Ge(0), Le(64)]], MaxLen(64)]
Epsilon = Annotated[float, Gt(0), Le(1)]
Scale = Annotated[float, Ge(1e-6), Le(1e6)]
"""What latents are multiplied with: neither 0 nor infinite, so that they can be divided by it."""
Shift = Annotated[float, Ge(-1e6), Le(1e6)]
Frequency = Annotated[float, Gt(0), Le(1e12)]
