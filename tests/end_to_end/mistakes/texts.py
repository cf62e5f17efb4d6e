"""Mistakes in calibration text, training rows and evaluation text."""

from __future__ import annotations

import torch
from end_to_end.mistakes.row import Mistake, Spoil, added, removed, truncated, written
from safetensors.torch import save_file

PRUNE = "spp prune small.yaml --run new --calibration"
FINETUNE = "spp finetune small.yaml --force"
PERPLEXITY = "spp eval small.yaml --text"
CHAT = '{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}\n'


def stored(tokens: torch.Tensor, name: str = "tokens") -> Spoil:
    """Store tokens as a calibration source."""
    return lambda: save_file({name: tokens}, "tokens.safetensors")


MISTAKES = [
    Mistake(
        "a text that is not there",
        f"{PRUNE} ./txt.txt",
        "prune.calibration.source: ./txt.txt: no such file or folder. "
        "Allowed: demo, c4, wikitext2, a file, a folder, or owner/name of a hub data set",
    ),
    Mistake(
        "a misspelt text",
        f"{PRUNE} wikitex2",
        "prune.calibration.source: wikitex2: no such file or folder. Did you mean 'wikitext2'? "
        "Allowed: demo, c4, wikitext2, a file, a folder, or owner/name of a hub data set",
    ),
    Mistake(
        "an empty text",
        f"{PRUNE} empty.txt",
        "prune.calibration.source: empty.txt holds no text. Name one that does",
        (written("empty.txt", " \n\n"),),
    ),
    Mistake(
        "an empty folder of texts",
        f"{PRUNE} texts",
        "texts: no readable file in this folder. "
        "Put text, JSON, JSON lines, CSV, Parquet or Arrow there",
        (written("texts/.hidden", "text"),),
    ),
    Mistake(
        "a binary file for a text",
        f"{PRUNE} data.bin2",
        "data.bin2: a binary file, not text",
        (written("data.bin2", b"text\0text"),),
    ),
    Mistake(
        "a text in another encoding",
        f"{PRUNE} latin.txt",
        "latin.txt: not UTF-8 text: byte 0xe9. Save it as UTF-8",
        (written("latin.txt", "é".encode("latin-1") * 200),),
    ),
    Mistake(
        "a text that is too short",
        f"{PRUNE} short.txt",
        "prune.calibration.source: short.txt has … tokens, and 2 different sequences of 32 need "
        "at least 33. Lower prune.calibration.samples or sequence_length, or give more text",
        (written("short.txt", "import this\n"),),
    ),
    Mistake(
        "a key that the JSON lines have not",
        f"{PRUNE} qa.jsonl",
        "qa.jsonl:1: no key 'text'; its keys: question, answer. Set prune.calibration.field",
        (written("qa.jsonl", '{"question": "1?", "answer": "2"}\n'),),
    ),
    Mistake(
        "instructions for chats, without a chat template",
        f"{PRUNE} rows.jsonl --format chat",
        "format chat needs a chat template, and this model's tokenizer has none. Use a model "
        "whose tokenizer has one, or rows with instruction and output (format: alpaca)",
    ),
    Mistake(
        "a plain text for chats",
        f"{PRUNE} text.txt --format chat",
        "prune.calibration: text.txt is plain text, and format is chat. "
        "Set format to text, or name a file of rows: JSON, JSON lines, CSV, Parquet or Arrow",
    ),
    Mistake(
        "one of several texts that is not there",
        f"{PRUNE} '{{text.txt: 1, txt.txt: 1}}'",
        "prune.calibration.source: txt.txt: no such file or folder. Allowed: …",
    ),
    Mistake(
        "one of several texts that gives nothing",
        f"{PRUNE} '{{text.txt: 9, rows.jsonl: 1}}'",
        "prune.calibration.source: rows.jsonl has the weight 1 of 10, and gives none of 2 samples. "
        "Raise its weight, or prune.calibration.samples",
    ),
    Mistake(
        "a key that holds no text",
        f"{PRUNE} numbers.jsonl",
        "numbers.jsonl:2: 'text' is a number, must be text",
        (written("numbers.jsonl", '{"text": "one"}\n{"text": 2}\n'),),
    ),
    Mistake(
        "a broken JSON line",
        f"{PRUNE} broken.jsonl",
        "broken.jsonl:3: not valid JSON: …",
        (written("broken.jsonl", '{"text": "one"}\n\n{"text": "two"\n'),),
    ),
    Mistake(
        "a gzip file cut short",
        f"{PRUNE} text.txt.gz",
        "text.txt.gz: not a whole gzip file: …",
        (written("text.txt.gz", b"\x1f\x8b\x08\x00"),),
    ),
    Mistake(
        "a Parquet file that is none",
        f"{PRUNE} text.parquet",
        "text.parquet: not a valid Parquet or Arrow file: …",
        (written("text.parquet", b"PAR1" * 20),),
    ),
    Mistake(
        "pickled tokens",
        f"{PRUNE} tokens.pt",
        "prune.calibration.source: tokens.pt is a pickle, which can run code when it is read. …",
        (written("tokens.pt", b"x"),),
    ),
    Mistake(
        "stored tokens of another length",
        f"{PRUNE} tokens.safetensors",
        "tokens.safetensors: sequences of 16 tokens, and 32 are asked for. "
        "Set prune.calibration.sequence_length to 16",
        (stored(torch.zeros(4, 16, dtype=torch.int64)),),
    ),
    Mistake(
        "stored tokens of another vocabulary",
        f"{PRUNE} tokens.safetensors",
        "tokens.safetensors: token ids from 5000 to 5000, and the tokenizer has 0 to 4095. "
        "Store the tokens of this model's tokenizer",
        (stored(torch.full((4, 32), 5000)),),
    ),
    Mistake(
        "fewer stored tokens than samples",
        f"{PRUNE} tokens.safetensors",
        "tokens.safetensors: 1 sequences, and 2 are wanted of it. "
        "Lower prune.calibration.samples, or store more",
        (stored(torch.zeros(1, 32, dtype=torch.int64)),),
    ),
    Mistake(
        "stored tokens under another name",
        f"{PRUNE} tokens.safetensors",
        "tokens.safetensors: no tensor is named tokens, but ids. "
        "Store one of shape (samples, length) under that name",
        (stored(torch.zeros(4, 32, dtype=torch.int64), "ids"),),
    ),
    Mistake(
        "a sequence longer than the context",
        f"{PRUNE} text.txt --sequence-length 65",
        "prune.calibration.sequence_length is 65, and the model's context is 64 tokens. "
        "Set at most 64, or auto",
    ),
    Mistake(
        "a split of a local file",
        f"{PRUNE} text.txt --set prune.calibration.split=train",
        "prune.calibration: subset and split belong to a hub data set, and source is text.txt. …",
    ),
    Mistake(
        "training rows that are not there",
        f"{FINETUNE} --data alpaca.json",
        "finetune.data.source: alpaca.json: no such file or folder. Allowed: …",
    ),
    Mistake(
        "a training row without its answer",
        FINETUNE,
        "rows.jsonl:13: no key 'output'; its keys: instruction. "
        "Name these keys so, or set finetune.data.format",
        (added("rows.jsonl", '{"instruction": "Add 1."}'),),
    ),
    Mistake(
        "a training row that is no object",
        FINETUNE,
        "rows.jsonl:13: a list, must be an object with the key 'instruction'",
        (added("rows.jsonl", '["Add 1."]'),),
    ),
    Mistake(
        "training rows of no known format",
        f"{FINETUNE} --data qa.jsonl",
        "qa.jsonl:1: keys answer, question tell no format. Allowed: …",
        (written("qa.jsonl", '{"question": "1?", "answer": "2"}\n'),),
    ),
    Mistake(
        "a pair without what was chosen",
        f"{FINETUNE} --data pairs.jsonl --format preference",
        "pairs.jsonl:…: no key 'chosen'; its keys: prompt, rejected. "
        "Name these keys so, or set finetune.data.format",
        (written("pairs.jsonl", '{"prompt": "1", "rejected": "2"}\n' * 4),),
    ),
    Mistake(
        "training rows with nothing to learn",
        f"{FINETUNE} --data blank.jsonl",
        "finetune.data: blank.jsonl leaves no row to validate on: it has 4, and of those chosen "
        "none is of use (left out: 1 empty). Give more rows, …",
        (written("blank.jsonl", '{"instruction": "1", "output": ""}\n' * 4),),
    ),
    Mistake(
        "a single training row",
        f"{FINETUNE} --data one.jsonl",
        "finetune.data: one.jsonl leaves no row to train on: …",
        (written("one.jsonl", '{"instruction": "1", "output": "2"}\n'),),
    ),
    Mistake(
        "conversations without a chat template",
        f"{FINETUNE} --data chat.jsonl",
        "format chat needs a chat template, and this model's tokenizer has none. Use a model "
        "whose tokenizer has one, or rows with instruction and output (format: alpaca)",
        (written("chat.jsonl", CHAT * 4),),
    ),
    Mistake(
        "a plain text as instructions",
        f"{FINETUNE} --data text.txt --format alpaca",
        "finetune.data: text.txt is plain text, and format is alpaca. "
        "Set format to text, or name a file of rows: JSON, JSON lines, CSV, Parquet or Arrow",
    ),
    Mistake(
        "validation rows that are not there",
        f"{FINETUNE} --validation held-out.jsonl",
        "finetune.data.validation_source: held-out.jsonl: no such file or folder. Allowed: …",
    ),
    Mistake(
        "a training sequence longer than the context",
        f"{FINETUNE} --sequence-length 4096",
        "finetune.data.sequence_length is 4096, and the model's context is 64 tokens. "
        "Set at most 64, or auto",
    ),
    Mistake(
        "an evaluation text shorter than a chunk",
        f"{PERPLEXITY} short.txt",
        "eval.perplexity.source: short.txt has … tokens, less than one chunk of 32. "
        "Lower eval.perplexity.sequence_length, or give more text",
        (written("short.txt", "import this\n"),),
    ),
    Mistake(
        "an evaluation text that is a folder of nothing",
        f"{PERPLEXITY} texts",
        "texts: no readable file in this folder: a.bin (no text). "
        "Put text, JSON, JSON lines, CSV, Parquet or Arrow there",
        (written("texts/a.bin", b"\0"),),
    ),
    Mistake(
        "a copy of data sets that is not there",
        "spp eval small.yaml --from nowhere --text wikitext2",
        "eval.data_folder is 'nowhere', which is not a folder",
    ),
    Mistake(
        "calibration text taken away",
        "spp prune small.yaml --run new",
        "prune.calibration.source: text.txt: no such file or folder. Allowed: …",
        (removed("text.txt"),),
    ),
    Mistake(
        "training rows cut short",
        FINETUNE,
        "rows.jsonl:7: not valid JSON: …",
        (truncated("rows.jsonl"),),
    ),
]
