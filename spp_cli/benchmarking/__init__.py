"""What a sparse model gains on this machine: speed and memory of each way to hold its weights."""
