"""Text and instruction rows, from a file, a folder, the hub or Python itself, to token ids."""
