"""A user made of a function of texts, whatever the chat template."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from chat_tools import chat_tokenizer
from gymnasium.vector import SyncVectorEnv
from tokenizers import Tokenizer, models, pre_tokenizers

from textgym import TokenEnv, TokenVectorEnv
from textgym.bridges.spoken import SpokenEpisodes
from textgym.codecs.chat import write_dialogue
from textgym.lm.reference import NGramReference
from textgym.rewards import Scorer
from textgym.users import _ITEMS, LMUser, WorldUser, _true
from textgym.world.prompts import find_item, items, phrase


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


ENDS = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}


@pytest.mark.parametrize("template", ENDS)
def test_what_a_template_writes_is_left_out_of_what_was_said(template):
    tokenizer, heard = chat_tokenizer("byte-level", template), []

    def reply(conversations):
        heard.extend(conversations)
        return ["what is it?" for _ in conversations]

    options = {"tokenizer": tokenizer, "stop": ENDS[template], "responder": reply}
    env = TokenEnv("Text", prompts=["Say Hello"], turns=4, turn_tokens=2, **options)
    env.reset(seed=0)
    hello = tokenizer("Hello", add_special_tokens=False)["input_ids"][0]
    stop = tokenizer.convert_tokens_to_ids(ENDS[template])
    for token in (hello, stop, hello, hello, hello, stop):  # the budget cuts the second turn off
        env.step(token)
    said = [message["content"] for message in heard[-1]]
    assert said[::2] == ["Say Hello", "what is it?", "what is it?"]
    state = env.get_state()
    seen = []

    def reward(prompts, completions, turns, **columns):
        seen.extend(turns)
        return [0.0 for _ in prompts]

    scorer = Scorer(reward)
    env.task.judge("train", [state.prompt], [list(state.completion)], scorer=scorer, environment=[state.environment])
    assert [text.strip() for author, text in seen[0] if author == "environment"] == ["what is it?"] * 3


@pytest.mark.parametrize("template", ["chatml", "llama-3", "gemma", "mistral"])
def test_a_conversation_of_turns_is_the_templates_own(template):
    tokenizer = chat_tokenizer("byte-level", template)
    end = ENDS[template]
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


def chat_template(earlier, opens=""):
    """ChatML whose earlier turns are an expression of Jinja, and whose answers the template begins."""
    return (
        f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content if loop.last else {earlier} }}}}"
        f"<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{opens}{{% endif %}}"
    )


@pytest.mark.parametrize("earlier", ["m.content | upper", "m.content.split('</think>')[-1].lstrip('\\n')"])
def test_a_template_that_rewrites_earlier_turns_is_refused(monkeypatch, earlier):
    tokenizer = chat_tokenizer("byte-level", "chatml")
    monkeypatch.setattr(tokenizer, "chat_template", chat_template(earlier))
    with pytest.raises(ValueError, match="the chat template writes earlier turns anew"):
        TokenEnv("Text", prompts=["Hello"], tokenizer=tokenizer, stop="<|im_end|>", responder=curious)


@pytest.mark.parametrize(
    ("earlier", "opens"),
    [
        ("m.content", "<think>\n"),
        ("('<think>\n\n</think>\n\n' if m.role == 'assistant') ~ m.content", "<think>\n\n</think>\n\n"),
    ],
)
def test_a_template_that_opens_the_reasoning_keeps_it(monkeypatch, earlier, opens):
    tokenizer = chat_tokenizer("byte-level", "chatml")
    monkeypatch.setattr(tokenizer, "chat_template", chat_template(earlier, opens))
    env = TokenEnv("Text", prompts=["Hello"], tokenizer=tokenizer, stop="<|im_end|>", responder=curious)
    _, _ = env.reset(seed=0)
    assert tokenizer.decode(env.get_state().tokens).endswith(opens)


def talk(env, *turns):
    """Write turns, each with its stop token; return what the environment writes behind each, None where it ends."""
    vocabulary, replies = env.task.vocabulary, []
    for text in turns:
        before = len(env.get_state().completion)
        for token in (*vocabulary.codec.encode(text), vocabulary.stop_ids[0]):
            *_, ended, _, _ = env.step(token)
        written = env.get_state()
        own = len(vocabulary.codec.encode(text)) + 1
        replies.append(None if ended else vocabulary.decode([written.completion[before + own :]])[0])
    return replies


def test_a_script_is_said_whatever_the_policy_says():
    env = TokenEnv("Text", prompts=["Hi."], responder={"name": "script", "texts": ["Why?", "Oh."]}, turns=5)
    env.reset(seed=0)
    assert talk(env, "One", "Two", "Three") == ["Why?", "Oh.", None]


def test_a_script_goes_on_behind_a_dialogue():
    tokenizer = chat_tokenizer("byte-level", "chatml")
    dialogue = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]
    script = {"name": "script", "texts": ["what is it?"]}
    env = TokenEnv(
        "Text", prompts=[write_dialogue(dialogue)], tokenizer=tokenizer, stop="<|im_end|>", responder=script, turns=3
    )
    env.reset(seed=0)
    assert "what is it?" in talk(env, "Hello")[0]


WORLD = {"prompts": ["What does the fox eat?"], "turns": 5}
STEADY = {"name": "world", "changes": 0.0}


def test_a_user_of_the_world_corrects_asks_back_and_leaves_when_content():
    env = TokenEnv("Text", responder=STEADY, **WORLD)
    env.reset(seed=0)
    assert talk(env, "The fox eats moss.", "Hello.", "The fox eats clams.") == [
        "No. The fox eats clams. What is the food of the fox?",
        "Tell me what the fox eats.",
        None,
    ]


def test_a_user_of_the_world_asks_again_in_other_words_however_they_asked_first():
    item, user = items("sum")[0], WorldUser(changes=0.0)
    for number in range(4):
        first, again = {"role": "user", "content": phrase(item, number)}, {"role": "assistant", "content": "Well."}
        (second,) = user([[first, again]], [0], [0])
        assert find_item(second) == item.key
        assert second != phrase(item, number)


def test_a_user_of_the_world_corrects_sums():
    env = TokenEnv("Text", prompts=["What is 7 plus 5?"], responder=STEADY, turns=3)
    env.reset(seed=0)
    (corrected,) = talk(env, "7 plus 5 is 13.")
    assert corrected.startswith("No. 7 plus 5 is 12. ")
    assert find_item(corrected.removeprefix("No. 7 plus 5 is 12. ")) == "sum:7+5"


def test_a_user_of_the_world_changes_their_mind():
    env = TokenEnv("Text", responder={"name": "world", "changes": 1.0}, **WORLD)
    turns = Counter()
    for seed in range(12):
        env.reset(seed=seed)
        asked = "food:fox"
        for turn in range(4):
            (reply,) = talk(env, "Hello.")
            if find_item(reply) != asked:
                turns[turn] += 1
                asked = find_item(reply)
        assert asked != "food:fox"
    assert set(turns) == {0, 1}
    assert turns.total() == 12


def test_a_user_who_asks_for_something_else_begins_with_a_question():
    env = TokenEnv("Text", prompts=["Hello."], responder=STEADY, turns=4)
    env.reset(seed=1)
    first, second = talk(env, "Hello to you.", "Well.")
    assert find_item(first) == find_item(second) is not None


def test_what_is_known_of_a_user_is_who_would_have_said_this():
    env = TokenEnv("Text", responder={"name": "world", "users": 12}, **WORLD)
    env.reset(seed=5)
    (reply,) = talk(env, "The fox eats moss.")
    state, user = env.get_state(), WorldUser(users=12)
    messages = [
        {"role": "user", "content": "What does the fox eat?"},
        {"role": "assistant", "content": "The fox eats moss."},
    ]
    alike = [user([messages], [0], [k]) == [reply] for k in range(12)]
    assert 0 < sum(alike) < 12
    assert env.task.turns.beliefs(state) == pytest.approx(np.array(alike) / sum(alike))


@pytest.mark.parametrize("responder", ["world", {"name": "world", "users": 3}, {"name": "lm", "tokens": 3}])
def test_users_say_the_same_one_at_a_time_and_side_by_side(responder):
    vector = TokenVectorEnv("Text", 3, responder=responder, turns=3, turn_tokens=3)
    apart = SyncVectorEnv([lambda: TokenEnv("Text", responder=responder, turns=3, turn_tokens=3)] * 3)
    first, second = vector.reset(seed=3), apart.reset(seed=3)
    generator = np.random.default_rng(0)
    for _ in range(14):
        assert (first[0]["input_ids"] == second[0]["input_ids"]).all()
        actions = generator.choice(np.flatnonzero(vector.task.vocabulary.allowed), 3)
        first, second = vector.step(actions), apart.step(actions)
        assert (first[2] == second[2]).all()


MESSAGES = [{"role": "user", "content": "What does the fox eat?"}, {"role": "assistant", "content": "Clams."}]


def test_a_language_model_says_what_the_state_says():
    user = LMUser(tokens=8)
    again, other = user([MESSAGES, MESSAGES], [0, 0], [7, 8])
    assert [again] == user([MESSAGES], [0], [7]) == pickle.loads(pickle.dumps(user))([MESSAGES], [0], [7])
    assert again != other
    assert user([MESSAGES], [1], [7]) != [again]
    greedy = LMUser(tokens=8, temperature=0)
    assert len(set(greedy([MESSAGES] * 3, [0, 1, 2], [0, 0, 0]))) == 1
    assert (user.weights, greedy.weights, LMUser(tokens=8, users=4).weights) == (None, (1.0,), [0.25] * 4)
    like_a_dialogue = write_dialogue([*MESSAGES, MESSAGES[0]])
    assert user([[{"role": "assistant", "content": like_a_dialogue}]], [0], [7])[0]


@pytest.mark.slow
def test_any_reference_is_a_user_and_is_sampled_as_it_says():
    words = ["a", "b", "c"]
    table = NGramReference(np.array([0.5, 0.3, 0.2]))
    user = LMUser(table, tokenizer=words, tokens=1, context=4)
    said = Counter(user([[{"role": "assistant", "content": "a b"}]] * 2000, range(2000), [0] * 2000))
    assert [said[word] / 2000 for word in words] == pytest.approx([0.5, 0.3, 0.2], abs=4 * np.sqrt(0.25 / 2000))


def test_a_model_with_a_chat_template_reads_the_conversation_from_the_other_side():
    tokenizer, seen = chat_tokenizer("byte-level", "chatml"), []

    class Looks:
        def log_probs(self, observation):
            ids = observation["input_ids"][0][observation["attention_mask"][0] > 0]
            seen.append(tokenizer.decode(ids))
            return np.zeros((1, len(tokenizer)))

    user = LMUser(Looks(), tokenizer=tokenizer, tokens=1, temperature=0, context=400, instruction="Go.")
    user([MESSAGES], [0], [0])
    turned = [{"role": "user", "content": "Go."}, *MESSAGES]
    turned = [
        {"role": role, "content": each["content"]}
        for role, each in zip(("user", "assistant", "user"), turned, strict=True)
    ]
    assert seen == [tokenizer.apply_chat_template(turned, add_generation_prompt=True, tokenize=False)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: WorldUser(changes=1.5), "changes=1.5"),
        (lambda: WorldUser(users=-1), "users=-1"),
        (lambda: LMUser(tokens=0), "tokens=0"),
        (lambda: LMUser(temperature=-1.0), "temperature=-1.0"),
        (lambda: LMUser(context=4000), "it reads at most 256 tokens"),
    ],
)
def test_users_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", ["turns", "turn_tokens", "reply_tokens"])
def test_limits_of_turns_are_refused_by_their_own_names(name):
    with pytest.raises(ValueError, match=rf"^{name}=0: allowed is an integer >= 1"):
        TokenEnv("Text", responder=curious, **{name: 0})


@pytest.mark.parametrize("said", [None, "b", 3])
def test_what_is_no_list_of_replies_is_refused(said):
    env = TokenEnv("Text", responder=lambda conversations: said, turn_tokens=1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"responder: {said!r} for 1 conversations; allowed is a text or None for"):
        env.step(5)


def test_a_user_without_a_first_question_does_not_ask_the_second_twice():
    user = WorldUser(changes=1.0)
    talk = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    for seed in range(40):
        (asked,) = user([talk], [0], [seed])
        key = find_item(asked)
        right = next(item for item in _ITEMS if item.key == key)
        more = [*talk, {"role": "user", "content": asked}, {"role": "assistant", "content": _true(right)}]
        assert user([more], [1], [seed]) == [None]


def spoken(chat, stop, replies):
    """A text task whose user always says the same, the conversations that it was shown, and what the reward was."""
    shown, judged = [], []

    def user(conversations):
        shown.extend(conversations)
        return replies * len(conversations)

    def reward(prompts, completions, turns, **columns):
        judged.extend(list(each) for each in turns)
        return [0.0] * len(prompts)

    options = {"responder": user, "turns": 3, "turn_tokens": 6, "chat": chat, "stop": stop, "reward": reward}
    return TokenEnv("Text", prompts=["What do you like?"], **options), shown, judged


@pytest.mark.parametrize("chat", ["Question: {prompt} Answer:", "<|user|>{prompt}<|end|><|assistant|>", "Q {prompt}"])
def test_what_a_template_wrote_is_no_part_of_a_message(chat):
    env, shown, judged = spoken(chat, "<|end|>", ["Why yes?"])
    env.reset(seed=0)
    words = {env.task.vocabulary.token_text(token): token for token in range(env.task.vocabulary.size)}
    for word in (" People", "<|end|>", " are", "<|end|>", " are", "<|end|>"):
        env.step(words[word])
    said = ["What do you like?", "People", "Why yes?", "are"]
    assert [each["content"] for each in shown[-1]] == said
    assert [text.strip() for _, text in judged[0]] == ["People", "Why yes?", "are", "Why yes?", "are"]
    episodes = SpokenEpisodes(spoken(chat, "<|end|>", ["Why yes?"])[0])
    episodes.begin(seed=0)
    episodes.act({"text": " People"})
    assert episodes.text == "Why yes?"


def test_words_that_no_tokenizer_knows_are_left_as_they_were(tmp_path):
    words = {word: place for place, word in enumerate(["a", "b", "Q", "A", "x", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shown = []
    options = {"prompts": ["a"], "tokenizer": str(tmp_path), "stop": "<end>", "chat": "Q {prompt} A", "turns": 2}
    counts = lambda prompts, completions, **columns: [0.0] * len(prompts)  # noqa: E731
    user = lambda asked: [shown.extend(asked), ["x b x"] * len(asked)][1]  # noqa: E731
    env = TokenEnv("Text", responder=user, turn_tokens=1, reward=counts, **options)
    env.reset(seed=0)
    env.step(0)
    assert env.task.turns.responder.content("environment", env.get_state().completion[1:]) == (4, 1, 4)


@pytest.mark.parametrize("stop", ["<|end|>", "."])
def test_a_turn_that_the_policy_has_ended_is_not_ended_again(stop):
    env, _, _ = spoken("<|user|>{prompt}<|end|><|assistant|>", ["<|end|>", "."], ["Why?"])
    env.reset(seed=0)
    words = {env.task.vocabulary.token_text(token): token for token in range(env.task.vocabulary.size)}
    for word in (" People", stop):
        env.step(words[word])
    written = [env.task.vocabulary.token_text(token) for token in env.get_state().completion]
    assert written[:3] == [" People", stop, "<|user|>"]
