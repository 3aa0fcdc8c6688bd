"""What makes a run one that cannot be lost: checkpoints, the folder and its lock, signals, ways back."""
