"""The four stages: each reads what earlier ones left on disk, and leaves its own in a folder."""
