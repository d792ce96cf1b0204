"""Block sizes that static schedules found best: (chip, padded length, padded head width) to what differs from the rule.

Sizes are those of `blocks.BlockSizes`; kv_compute, tile_kv and kv_compute_backward are upper bounds, because they must
divide the keys in VMEM. The rows are data: a tool may write them anew.
"""

TUNED: dict[tuple[str, int, int], dict[str, int]] = {
    ("tpu7x", 4224, 128): {"q_compute": 1408, "kv_compute": 384},
    ("tpu7x", 8192, 128): {"q_compute": 2048, "kv_compute": 1024},
    ("v6e", 16384, 128): {"kv_compute": 2048},
    ("v6e", 131072, 128): {"kv_compute": 2048},
}
