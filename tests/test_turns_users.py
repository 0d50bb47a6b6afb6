"""A user made of a function of texts, whatever the chat template."""

from __future__ import annotations

import pytest
from chat_tools import chat_tokenizer

from textgym import TokenEnv


def curious(conversations):
    return [f"Why {conversation[-1]['content'].split(' ')[0]}?" for conversation in conversations]


def test_a_user_of_texts_writes_in_the_chat_template():
    env = TokenEnv("Text", prompts=["What do you like?"], responder=curious, turns=2, turn_tokens=4)
    vocabulary = env.task.vocabulary
    token = {vocabulary.token_text(i): i for i in range(vocabulary.size)}
    env.reset(seed=0)
    for text in (" People", "<|end|>"):
        env.step(token[text])
    after = env.get_state().completion[2:]
    assert after == vocabulary.encode_prompt("Why People?")
    env.reset(seed=0)
    for text in (" People", " are", " are", " are"):
        env.step(token[text])
    assert env.get_state().completion[4:] == (token["<|end|>"], *vocabulary.encode_prompt("Why People?"))


@pytest.mark.parametrize("template", ["chatml", "llama-3", "gemma", "mistral"])
def test_a_conversation_of_turns_is_the_templates_own(template):
    tokenizer = chat_tokenizer("byte-level", template)
    end = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[template]
    heard = []

    def reply(conversations):
        heard.extend(conversations)
        return ["what is it?" for _ in conversations]

    env = TokenEnv("Text", prompts=["Say Hello"], tokenizer=tokenizer, stop=end, responder=reply, turn_tokens=20)
    said = [
        *tokenizer(" " * (template == "mistral") + "Hello world", add_special_tokens=False)["input_ids"],
        tokenizer.convert_tokens_to_ids(end),
    ]
    env.reset(seed=0)
    for token in said:
        env.step(token)
    messages = [
        {"role": "user", "content": "Say Hello"},
        {"role": "assistant", "content": "Hello world"},
    ]
    assert heard == [messages]
    messages.append({"role": "user", "content": "what is it?"})
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(env.get_state().tokens) == whole
    # A turn that its budget cuts off is ended by the environment.
    env = TokenEnv(
        "Text", prompts=["Say Hello"], tokenizer=tokenizer, stop=end, responder=reply, turn_tokens=len(said) - 1
    )
    env.reset(seed=0)
    for token in said[:-1]:
        env.step(token)
    assert tokenizer.decode(env.get_state().tokens) == whole


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = chat_tokenizer("byte-level", "chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content | upper }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(ValueError, match="the chat template writes earlier turns anew"):
        TokenEnv("Text", prompts=["Hello"], tokenizer=tokenizer, stop="<|im_end|>", responder=curious)
