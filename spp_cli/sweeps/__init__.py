"""Many runs from one file: its points, their processes, and what became of each."""
