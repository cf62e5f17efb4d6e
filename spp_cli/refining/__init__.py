"""Refinements of keep masks: one file each, named by this table and nowhere else."""

TABLE = {
    "none": "spp_cli.refining.refinement:NoRefinement",
    "dsnot": "spp_cli.refining.dsnot:DSnoT",
}
