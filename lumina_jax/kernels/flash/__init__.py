"""Flash attention for TPU: kernels that never hold a tensor of queries x keys."""
