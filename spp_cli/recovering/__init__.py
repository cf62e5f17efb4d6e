"""Recoveries of kept weights: one file each, named by this table and nowhere else."""

TABLE = {
    "none": "spp_cli.recovering.recovery:NoRecovery",
    "least-squares": "spp_cli.recovering.least_squares:LeastSquares",
}
