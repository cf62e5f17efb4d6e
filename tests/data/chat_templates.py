"""Chat templates with the habits of the families in use, and what in them the assistant says.

Each is written once, with « and » around what the assistant says. Without them it is a template as
most are; with transformers' generation tags in their place it tells itself where the answers stand.
"""

from __future__ import annotations

import copy
from typing import Any

TAGS = ["<|from|>", "<|end|>", "<|stop|>", "<|via|>", "[ASK]", "[/ASK]", "[CALL]", "[/GOT]"]

# As Mistral's: the rules stand with the last question, answers are trimmed, none is invited to.
RULES_LAST = (
    "{{ bos_token }}{% set ns = namespace(last=-1, rules='') %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% if m.role == 'system' %}{% set ns.rules = m.content + '\n\n' %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}[ASK] "
    "{% if loop.index0 == ns.last %}{{ ns.rules }}{% endif %}{{ m.content }}[/ASK]"
    "{% elif m.role == 'tool' %}[GOT] {{ m.content }}[/GOT]"
    "{% elif m.tool_calls %}«[CALL] [{% for c in m.tool_calls %}{{ c.function | tojson }}"
    "{% endfor %}]{{ eos_token }}»"
    "{% elif m.role == 'assistant' %}« {{ m.content | trim }}{{ eos_token }}»{% endif %}"
    "{% endfor %}"
)
# As Qwen's: thoughts are shown after the last question alone, and there always.
THOUGHTS_LAST = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' and not "
    "m.content.startswith('<got>') %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set words = m.content or '' %}{% set thoughts = m.reasoning_content or '' %}"
    "{% if '</think>' in words %}"
    "{% set thoughts = words.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|from|>assistant\nOPEN«{% if loop.index0 > ns.last %}<think>\n{{ thoughts }}\n</think>\n\n"
    "{% endif %}{{ words }}"
    "{% for c in m.tool_calls or [] %}\n<call>{{ c.function.name }} {{ c.function.arguments | "
    "tojson }}</call>{% endfor %}<|end|>\n»"
    "{% elif m.role == 'tool' %}<|from|>user\n<got>{{ m.content }}</got><|end|>\n"
    "{% else %}<|from|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|from|>assistant\nINVITE{% endif %}"
)
STAND_INS = {
    "rules last": RULES_LAST,
    "thoughts last": THOUGHTS_LAST.replace("OPEN", "").replace("INVITE", ""),
    # As those of models that always think: the invitation opens the thoughts.
    "thoughts invited": THOUGHTS_LAST.replace(
        "OPEN«{% if loop.index0 > ns.last %}<think>\n",
        "{% if loop.index0 > ns.last %}<think>\n{% endif %}«{% if loop.index0 > ns.last %}",
    ).replace("INVITE", "<think>\n"),
    # As Llama 3's: a header with the date, and all content trimmed.
    "trimmed": (
        "{{ bos_token }}<|from|>system<|via|>\n\nToday is {{ strftime_now('%d %b') }}.<|end|>"
        "{% for m in messages %}<|from|>{{ m.role }}<|via|>\n\n"
        "{% if m.role == 'assistant' %}«{{ m.content | trim }}<|end|>»{% else %}"
        "{{ m.content | trim }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|from|>assistant<|via|>\n\n{% endif %}"
    ),
    # As Gemma's: no system, the assistant is a model, and roles must alternate.
    "alternating": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate, and system is none') }}{% endif %}"
        "{% if m.role == 'assistant' %}<|from|>model\n«{{ m.content | trim }}<|end|>\n»{% else %}"
        "<|from|>user\n{{ m.content | trim }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|from|>model\n{% endif %}"
    ),
    # As Phi's: the text ends with one more token than a turn does.
    "ended": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|from|>assistant\n"
        "«{{ m.content }}<|end|>\n{% if loop.last %}{{ eos_token }}{% endif %}»{% else %}"
        "<|from|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|from|>assistant\n{% endif %}"
    ),
    # As GPT-OSS's: the last turn ends with another token than the others.
    "stopped": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|from|>assistant"
        "«<|via|>{{ m.content }}{% if loop.last %}<|stop|>{% else %}<|end|>{% endif %}»{% else %}"
        "<|from|>{{ m.role }}<|via|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|from|>assistant{% endif %}"
    ),
    # Without any tag, as the oldest ones.
    "plain": (
        "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT:« {{ m.content }}"
        "{{ eos_token }}»{% else %}{{ m.role | upper }}: {{ m.content }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}


def with_template(tokenizer: Any, name: str, *, tells: bool = False) -> Any:
    """Return a copy of a tokenizer with one of the stand-ins; one that ``tells`` has its tags."""
    chatty = copy.deepcopy(tokenizer)
    chatty.add_special_tokens({"additional_special_tokens": TAGS})
    begin, end = ("{% generation %}", "{% endgeneration %}") if tells else ("", "")
    chatty.chat_template = STAND_INS[name].replace("«", begin).replace("»", end)
    return chatty
