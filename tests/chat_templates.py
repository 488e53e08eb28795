"""Chat templates of well-known checkpoints in their essence, with small tokenizers that have their special tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

TURNS = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi! The cat sat."},
    {"role": "user", "content": " and the dog?\n"},
    {"role": "assistant", "content": "The dog sat\non the mat 你好"},
]
CORPUS = ["the cat sat on the mat. the dog sat on the cat.", "User: Hello\nAssistant: Hi there", "über naïve 你好"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(special, rstrip=()) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, normalized=False, rstrip=token in rstrip) for token in special]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=added, initial_alphabet=BYTES, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.ByteLevel(trim_offsets=True)  # as GPT-2's: " the" is given as "the"
    return inner


def sentencepiece(special) -> tokenizers.Tokenizer:
    """Llama 2's kind: a space before everything, spaces written as ▁, unknown characters as bytes."""
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", *special, *(f"<0x{i:02X}>" for i in range(256))],
        show_progress=False,
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.train_from_iterator(CORPUS[:2], trainer)
    # The bytes were only named to get them into the vocabulary.
    vocabulary = inner.get_vocab()
    inner.model = models.BPE(
        vocab=vocabulary, merges=merges_of(inner), byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    again = tokenizers.Tokenizer(inner.model)
    again.normalizer = inner.normalizer
    again.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ["<unk>", *special]])
    again.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    again.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", again.token_to_id("<s>"))]
    )
    return again


def merges_of(inner):
    import json

    return [tuple(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]


@dataclass
class Case:
    """A template, its special tokens, the text it makes of `TURNS` and what of it is learned."""

    template: str
    special: tuple[str, ...]
    learned: tuple[str, ...]
    config: dict = field(default_factory=dict)
    kind: str = "bytes"
    rstrip: tuple[str, ...] = ()
    bos: int = 0  # how many tokens of beginning of text the conversation has

    def inner(self) -> tokenizers.Tokenizer:
        return sentencepiece(self.special) if self.kind == "pieces" else byte_level(self.special, self.rstrip)


HI, DOG = "Hi! The cat sat.", "The dog sat\non the mat 你好"
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""  # noqa: E501
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results") %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""  # noqa: E501
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""  # noqa: E501
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""  # noqa: E501
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token"  # noqa: E501
    " }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif "
    "message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if "
    "loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GENERATION = """{% for message in messages %}
{% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}

{% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{% if loop.index > 50 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
S = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}

CASES = {
    "smollm2": Case(CHATML, IM, (HI + "<|im_end|>", DOG + "<|im_end|>"), {"bos_token": IM[1], "eos_token": IM[2]}),
    "llama2": Case(INST, ("<s>", "</s>"), (f" {HI} </s>", f" {DOG} </s>"), S, "pieces", bos=2),
    "llama3": Case(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        (HI + "<|eot_id|>", DOG + "<|eot_id|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "add_bos_token": True},
        bos=1,
    ),
    "mistral": Case(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), (f" {HI}</s>", f" {DOG}</s>"), S, "pieces", bos=1),
    "qwen2.5": Case(QWEN25, IM, (HI + "<|im_end|>", DOG + "<|im_end|>"), {"bos_token": None, "eos_token": IM[2]}),
    # The last answer alone: the first lost the empty <think></think> that it would have been written with.
    "qwen3": Case(QWEN3, IM, (f"<think>\n\n</think>\n\n{DOG}<|im_end|>",), {"eos_token": IM[2]}),
    "zephyr": Case(ZEPHYR, ("<s>", "</s>"), (f"{HI}</s>", f"{DOG}</s>"), S, "pieces"),
    "gemma": Case(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        (HI + "<end_of_turn>", DOG + "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True},
        bos=1,
    ),
    "phi3": Case(
        PHI3,
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"),
        (HI + "<|end|>", DOG + "<|end|>"),
        {"eos_token": "<|endoftext|>"},
        rstrip=("<|user|>", "<|assistant|>", "<|end|>", "<|system|>"),
    ),
    "generation": Case(GENERATION, IM, (HI + "<|im_end|>", DOG + "<|im_end|>"), {"eos_token": IM[2]}),
}
