"""Allocations, how much each layer loses: one file each, named by this table and nowhere else."""

TABLE = {
    "uniform": "spp_cli.allocation.allocation:Uniform",
    "owl": "spp_cli.allocation.owl:OWL",
    "globs": "spp_cli.allocation.globs:Globs",
}
