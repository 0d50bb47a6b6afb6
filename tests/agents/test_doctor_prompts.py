"""The doctor sees how a task's prompts are opened: by a template, by a BOS, by both, or by nothing."""

from __future__ import annotations

import pytest
from agents.enumerated import tiny_task
from agents.test_doctor import alarms, healthy
from core_tools import STORIES, byte_level, hugging_face, needs_stories
from textgym_agents.training.doctor import Doctor, prompt_signs
from tokenizers import Tokenizer, processors

from textgym import make_task


def test_prompts_are_opened_once(tmp_path):
    def signs(**options):
        prompts = options.pop("prompts", ["Hello."])
        return prompt_signs(make_task("Text", reward="length", prompts=prompts, **options))

    assert signs() == {"prompt/openings": 1.0}  # the built-in tokenizer has a template
    assert signs(prompts=["<|user|>Hello.<|end|><|assistant|>"]) == {"prompt/openings": 2.0}
    assert signs(prompts=["a", "a", "a", "<|user|>a"]) == {"prompt/openings": 1.25}
    assert prompt_signs(tiny_task()) == {}  # words have neither template nor BOS
    doctor = Doctor(make_task("Text", reward="length", prompts=["<|user|>Hello."]), say=lambda line: None)
    doctor(healthy(1) | {"prompt/openings": 2.0})
    assert list(alarms(doctor)) == ["chat template or BOS missing or doubled"]


WRITES = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=needs_stories)])
@pytest.mark.parametrize(
    ("template", "prompt", "openings"),
    [
        (None, "Hello.", 1.0),  # the tokenizer adds its BOS
        ("{{ bos_token }}" + WRITES, "Hello.", 1.0),  # the template writes it
        (WRITES, "Hello.", 0.0),  # nobody does: ids of a chat template are those of its text
        ("{{ bos_token }}{{ bos_token }}" + WRITES, "Hello.", 2.0),
        ("{{ bos_token }}" + WRITES, "<s>[Hello.]", 2.0),  # a text that the template has written already
        (None, "<s>[Hello.]", 2.0),
        (None, "What does <s> mean?", 1.0),
    ],
)
def test_a_bos_that_is_missing_or_doubled_is_named(real, template, prompt, openings):
    bare = Tokenizer.from_file(str(STORIES / "tokenizer.json")) if real else byte_level()
    if not real:
        bare.add_special_tokens(["<s>"])
        place = bare.token_to_id("<s>")
        bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", place)])
    assert bare.encode("a").tokens[0] == "<s>"
    tokenizer = hugging_face(bare, bos_token="<s>", chat_template=template)
    task = make_task("Text", reward="length", prompts=[prompt], tokenizer=tokenizer)
    assert prompt_signs(task) == {"prompt/openings": openings}
    doctor = Doctor(task, say=lambda line: None)
    doctor(healthy(1) | prompt_signs(task))
    assert ("chat template or BOS missing or doubled" in alarms(doctor)) == (openings != 1)
