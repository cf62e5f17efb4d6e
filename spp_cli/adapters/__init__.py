"""Adapters that keep every zero a zero: one file each, named by this table and nowhere else."""

TABLE = {
    "spp": "spp_cli.adapters.spp:SPP",
}
