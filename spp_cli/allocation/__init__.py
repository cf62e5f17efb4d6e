"""Allocations, how much each layer loses: one file each, named by this table and nowhere else."""

TABLE = {
    "uniform": "spp_cli.allocation.allocation:Uniform",
    "owl": "spp_cli.allocation.owl:OWL",
    "sensitivity": "spp_cli.allocation.sensitivity:Sensitivity",
    "globs": "spp_cli.allocation.globs:Globs",
}
