"""Adapters that keep every zero a zero, and one that does not: a file each, named by this table."""

TABLE = {
    "spp": "spp_cli.adapters.settings:SPP",
    "masked-lora": "spp_cli.adapters.settings:MaskedLoRA",
    "multiplicative": "spp_cli.adapters.settings:Multiplicative",
    "masked-full": "spp_cli.adapters.settings:MaskedFull",
    "lora": "spp_cli.adapters.settings:LoRA",
}
