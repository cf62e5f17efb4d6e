"""Pruning methods: one file each, named by this table and nowhere else."""

TABLE = {
    "magnitude": "spp_cli.pruning.magnitude:Magnitude",
    "wanda": "spp_cli.pruning.wanda:Wanda",
    "sparsegpt": "spp_cli.pruning.sparsegpt:SparseGPT",
    "fista": "spp_cli.pruning.fista:Fista",
    "mrp": "spp_cli.pruning.mrp:MRP",
    "alps": "spp_cli.pruning.alps:ALPS",
    "isc": "spp_cli.pruning.isc:ISC",
    "ria": "spp_cli.pruning.ria:RIA",
    "wanda++": "spp_cli.pruning.wanda_plus_plus:WandaPlusPlus",
}
