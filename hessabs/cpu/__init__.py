"""What only XLA on the CPU needs: convolutions in parts, sizes that fit the caches, threads."""
