"""Flag-DiT 3B on ImageNet-1k, 256 pixels, by label (Lumina-T2X report, arXiv 2405.05945, table of ImageNet results)."""
