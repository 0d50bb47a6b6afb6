"""`textgym preferences`: what it writes, prints and refuses, and what it says of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_tools import assert_one_line, child, run

from textgym.preferences import pairs, read_rankings
from textgym.preferences.data import as_dialogue

HOSTILE = "[red]hi[/red] \x1b[31m\u202e"
GOOD = {"prompt": "p", "chosen": "yes", "rejected": "no!"}
TEXT = (
    "Text-v0",
    "--policy",
    "random",
    "--env",
    'tokenizer=["<end>","a","b"]',
    "stop=<end>",
    'prompts=["a","b"]',
    "max_new_tokens=3",
    "reference=uniform",
    'reward={"name":"length","target":2,"unit":"tokens"}',
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def cell(out: str, name: str) -> str:
    (line,) = (line for line in out.splitlines() if line.strip().startswith(name))
    return line.strip().removeprefix(name).strip()


def test_it_writes_what_it_prints(capsys):
    words = ("--n", "60", "--noise", "0.5", "--seed", "3", "--examples", "2")
    code, out, err = run(capsys, "preferences", *TEXT, *words, "--out", "new/x.jsonl")
    assert (code, err) == (0, "")
    reading = read_rankings("new/x.jsonl")
    rows = reading.rows
    assert reading.format == "trl"
    assert cell(out, "rows written") == cell(out, "rankings  ") == str(len(rows))
    assert int(cell(out, "without two different")[-3:]) + int(cell(out, "all answers tied in gold")) == 60 - len(rows)
    wrong = sum(row.scores[0] < row.scores[1] for row in rows)
    assert 0 < wrong < len(rows) / 2
    assert cell(out, "annotator against gold, of all pairs") == f"{wrong / len(rows):.3f}"
    cut = sum(not ended for row in rows for ended in row.ended)
    assert cell(out, "answers cut off") == f"{cut} of {2 * len(rows)}"
    assert out.count("prompt   ") == 2
    assert f"{rows[1].scores[0]:7.3f}  {rows[1].completions[0]}" in out
    # The same seed writes the same bytes.
    run(capsys, "preferences", *TEXT, *words, "--out", "again.jsonl")
    assert Path("again.jsonl").read_bytes() == Path("new/x.jsonl").read_bytes()


def test_every_format_holds_the_same_rankings(capsys):
    words = ("--n", "20", "--candidates", "3", "--keep-ties", "--noise", "1")
    for format in ("rankings", "trl", "transcripts"):
        code, out, _ = run(
            capsys, "preferences", *TEXT, *words, "--format", format, "--out", f"{format}.jsonl", "--json"
        )
        assert code == 0
        report = json.loads(out)
        assert report["rows"] == len(read_rankings(f"{format}.jsonl").rows)
        assert (report["prompts"], report["ties"]) == (20, 0)
    rankings = read_rankings("rankings.jsonl").rows
    assert max(len(ranking.completions) for ranking in rankings) == 3
    split = [pair for ranking in rankings for pair in pairs(ranking)]
    assert read_rankings("trl.jsonl").rows == split
    assert read_rankings("transcripts.jsonl").rows == [as_dialogue(pair) for pair in split]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ["ID", "--check"]),
        (("Text-v0",), ["--out"]),
        (("Txt-v0", "--out", "y.jsonl"), ["'Txt-v0'", "Did you mean 'textgym/Text-v0'?"]),
        (("Text-v0", "--out", "x.jsonl"), ["--out 'x.jsonl'", "not overwritten"]),
        (("Text-v0", "--out", "y.csv"), ["--out 'y.csv'", "the name must end in .jsonl"]),
        (("Text-v0", "--out", "y.jsonl", "--candidates", "1"), ["candidates=1", "in 2..1048576"]),
        (("Text-v0", "--out", "y.jsonl", "--n", "0"), ["n=0"]),
        (("Text-v0", "--out", "y.jsonl", "--seed", "-1"), ["seed=-1: allowed is an integer >= 0"]),
        (("Text-v0", "--out", "y.jsonl", "--noise", "-1"), ["noise=-1"]),
        (("Text-v0", "--out", "y.jsonl", "--noise", "nan"), ["noise=nan"]),
        (("Text-v0", "--out", "y.jsonl", "--format", "tlr"), ["--format", "trl"]),
        (("Helpful-v0", "--out", "y.jsonl", "--policy", "nobody"), ["--policy 'nobody'", "reference"]),
        (("Text-v0", "--out", "x.jsonl/y.jsonl"), ["x.jsonl"]),
        (("Text-v0", "--check", "x.jsonl"), ["--check"]),
        (("--check", "y.jsonl"), ["y.jsonl", "no such file"]),
    ],
)
def test_errors_are_one_line(capsys, words, said):
    Path("x.jsonl").write_text("mine", encoding="utf-8")
    code, out, err = run(capsys, "preferences", *words)
    assert_one_line(code, err, *said)
    assert not out
    assert Path("x.jsonl").read_text(encoding="utf-8") == "mine"
    assert not Path("y.jsonl").exists()


def test_without_any_ranking_no_file_is_written(capsys):
    constant = (
        "--env",
        *TEXT[4:-1],
        'reward={"name":"length","target":9,"unit":"tokens"}',
        "max_new_tokens=1",
    )
    code, out, err = run(
        capsys, "preferences", "Text-v0", "--policy", "random", *constant, "--n", "9", "--out", "x.jsonl"
    )
    assert_one_line(code, err, "none of 9 prompts", "--keep-ties")
    assert not out
    assert not list(Path.cwd().iterdir())


# --check


def put(*rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path("x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return "x.jsonl"


def test_a_good_file_is_described(capsys):
    scored = GOOD | {
        "chosen": "longer",
        "chosen_score": 0,
        "rejected_score": 1,
        "chosen_ended": False,
        "rejected_ended": True,
    }
    code, out, err = run(capsys, "preferences", "--check", put(GOOD, GOOD | {"chosen": "si", "prompt": "qrs"}, scored))
    assert (code, err) == (0, "")
    assert "x.jsonl: format trl" in out
    assert (cell(out, "good rows"), cell(out, "broken rows"), cell(out, "different prompts")) == (
        "3",
        "0",
        "2",
    )
    # "p", "qrs", "p"; "yes", "si", "longer"; "no!" three times.
    assert cell(out, "prompt: mean / median / longest, characters") == "2 / 1 / 3"
    assert cell(out, "best: mean / median / longest, characters") == "4 / 3 / 6"
    assert cell(out, "worst: mean / median / longest, characters") == "3 / 3 / 3"
    # Equally long, shorter, longer: (0.5 + 0 + 1) / 3.
    assert cell(out, "the longer one is preferred, of all pairs") == "0.500"
    assert cell(out, "preferred against its score, of all pairs") == "1.000"
    assert cell(out, "completions marked as cut off") == "1"


def test_broken_rows_are_listed_and_are_an_error(capsys):
    path = put(GOOD, "{", *[{"chosen": HOSTILE}] * 25)
    code, out, err = run(capsys, "preferences", "--check", path)
    assert_one_line(code, err, "26 of 27 rows are broken")
    assert "line 2: not JSON" in out
    assert "and 6 more" in out
    assert len(out.splitlines()) < 60
    code, out, _ = run(capsys, "preferences", "--check", path, "--json")
    report = json.loads(out)
    assert (code, report["rows"], report["broken"]) == (2, 1, 26)
    assert [problem["line"] for problem in report["problems"]] == list(range(2, 28))


def test_what_a_file_holds_cannot_steer_the_terminal(capsys):
    _, out, err = run(capsys, "preferences", "--check", put({HOSTILE: 1}, GOOD))
    assert "[red]hi[/red]" in out
    assert not {"\x1b", "\u202e"} & set(out + err)


def test_demonstrations_can_be_checked_too(capsys):
    code, out, _ = run(capsys, "preferences", "--check", put({"prompt": "p", "completion": "abc"}))
    assert code == 0
    assert "format demonstrations" in out
    assert cell(out, "completion: mean / median / longest, characters") == "3 / 3 / 3"


def test_transcripts_that_part_early_are_counted(capsys):
    start = "\n\nHuman: q\n\nAssistant:"
    early = {"chosen": f"{start} a", "rejected": f"{start} b\n\nHuman: r\n\nAssistant: c"}
    _, out, _ = run(capsys, "preferences", "--check", put({"chosen": f"{start} a", "rejected": f"{start} b"}, early))
    assert cell(out, "rows that part before the last turn") == "1"


@pytest.mark.slow
def test_checking_needs_no_torch():
    path = put(GOOD)
    before = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = child("preferences", "--check", str(Path(path).resolve()), before=before)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("False\n")
