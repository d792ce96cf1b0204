"""Captions and pixels in, packed batches out.

`sources.open_source` and `batches.Stream` are the two doors. Nothing is imported here: worker processes load
`preparation` alone, without the text encoders.
"""
