"""The commands in the order in which help shows them: where each is, and its help.

A command's module is imported when it is called: the list of them waits for none.
"""

__all__ = ["COMMANDS", "GROUPS"]

COMMANDS = {
    "calibrate": (
        "calibrate:CALIBRATE",
        "Draw the calibration tokens once, for every prune to come.",
    ),
    "prune": ("stages:PRUNE", "Prune a dense model: the lowest scores become zeros."),
    "finetune": ("stages:FINETUNE", "Train an adapter on a pruned model; no zero is lost."),
    "merge": ("stages:MERGE", "Multiply the adapter into the weights: a plain sparse model."),
    "eval": ("stages:EVAL", "Measure perplexity and accuracy of any stage, or of a folder."),
    "data check": (
        "data:DATA_CHECK",
        "Say which data sets of tasks and texts are on this machine; exit 2 if any is missing.",
    ),
    "run": ("stages:RUN", "Run all stages in order, skipping what is up to date."),
    "sweep": (
        "sweep:SWEEP",
        "Run every combination of some settings, and compare them; restartable at any moment.",
    ),
    "plan": ("plan:PLAN", "Show what a configuration would do and need; reads no weights."),
    "status": ("status:STATUS", "Show the runs in the workspace, or one run stage by stage."),
    "compare": (
        "compare:COMPARE",
        "Compare the results of runs in one table; what does not compare is marked, and why.",
    ),
    "diff": (
        "diff:DIFF",
        "Show what differs between two runs, the likeliest cause of other numbers first.",
    ),
    "report": (
        "report:REPORT",
        "Write a page about one run or more: what was done, tables, plots, samples.",
    ),
    "card": ("card:CARD", "Write the model card of a run anew, with the results that there are."),
    "push": (
        "push:PUSH",
        "Put the model of a run on the hub; shows what would go there, and with --yes does it.",
    ),
    "generate": (
        "generate:GENERATE",
        "Let models go on from a prompt: all of a run, or any others, side by side.",
    ),
    "bench": (
        "bench:BENCH",
        "Measure speed and memory of a sparse model here, in every way to hold its weights.",
    ),
    "verify": (
        "folders:VERIFY",
        "Check the zeros of any model folder, layer by layer; exit 1 if broken.",
    ),
    "unpack": ("folders:UNPACK", "Bring back the model folder that spp merge --packed made small."),
}
GROUPS = {"data": "Look after the data sets that tasks and texts come from."}
