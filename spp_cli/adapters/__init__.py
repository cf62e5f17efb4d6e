"""Adapters that keep every zero a zero, and one that does not: a file each, named by this table."""

TABLE = {
    "spp": "spp_cli.adapters.spp:SPP",
    "masked-lora": "spp_cli.adapters.masked_lora:MaskedLoRA",
    "multiplicative": "spp_cli.adapters.multiplicative:Multiplicative",
    "masked-full": "spp_cli.adapters.masked_full:MaskedFull",
    "lora": "spp_cli.adapters.lora:LoRA",
}
