"""Attention kernels, ours and others', compared by the schedule that the TPU compiler writes for them."""
