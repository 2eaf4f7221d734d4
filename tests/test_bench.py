"""What the benchmarks say of their samples, and that they run: on made-up samples, and on small sizes in a process."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import all as all_programs
import harness
import on_accelerator
import training

BENCH = Path(harness.__file__).parent
sys.path.remove(str(BENCH))


def raced(*processes: dict[str, float], temps: dict[str, int] | None = None) -> harness.Race:
    """A race with one sample of each rival in each process; "a" and "b" are peers."""
    samples = {name: [[process[name]] for process in processes] for name in processes[0]}
    peers = {name: each for name, each in samples.items() if name in "ab"}
    return harness.Race("race", peers, samples, temps or dict.fromkeys(samples))


def test_a_ratio_of_all_processes_stands_with_the_spread_between_them():
    race = raced({"us": 4, "a": 4}, {"us": 3, "a": 4}, {"us": 4, "a": 5})
    ratio = race.ratio("us", harness.FASTEST)
    assert ratio.pooled == 1
    assert ratio.each == [1, 0.75, 0.8]
    assert str(ratio) == "1.00 (0.75 to 1.00)"


@pytest.mark.parametrize(("each", "verdict"), [
    ([0.9, 0.99], "faster"),
    ([1.01, 1.2], "slower"),
    ([0.5, 1.0], "a tie"),  # one process that shows nothing is enough
    ([0.5, 1.1], "a tie"),
])  # fmt: skip
def test_a_row_is_a_tie_unless_every_process_is_on_one_side_of_1(each: list[float], verdict: str):
    assert harness.Ratio(sum(each) / 2, each).verdict == verdict


def test_what_all_samples_together_don_t_show_is_a_tie_too():
    assert harness.Ratio(1.01, [0.9, 0.99]).verdict == "a tie"


def test_a_claim_holds_if_it_does_in_every_process():
    assert harness.Ratio(1.0, [0.9, 1.03]).holds(1.03)
    assert not harness.Ratio(0.8, [0.7, 1.04]).holds(1.03)  # a lucky state of the allocator in one


def test_the_fastest_peer_is_chosen_by_samples_of_its_own():
    """Not by those that it is then judged by, of which the least is a lucky one."""
    race = harness.Race(
        "race",
        {"a": [[1.0], [1.0]], "b": [[2.0], [2.0]]},
        {"us": [[6.0], [6.0]], "a": [[3.0], [3.0]], "b": [[2.0], [2.0]]},
        {"us": 10, "a": 8, "b": 5},
    )
    assert race.fastest == "a"
    assert race.ratio("us", harness.FASTEST).pooled == 2
    assert race.memory("us", harness.FASTEST) == 2  # by the smallest
    assert race.memory("us", "a") == 10 / 8
    assert harness.Race("", {"a": [[]]}, {"us": [[1.0]], "a": [[1.0]]}, {}).fastest == "a"


def test_memory_that_is_not_known_is_not_told():
    assert raced({"us": 1, "a": 1}, temps={"us": None, "a": 1}).memory("us", harness.FASTEST) is None
    assert raced({"us": 1, "a": 1}, temps={"us": 1, "a": 0}).memory("us", harness.FASTEST) is None


def test_the_table_marks_claims_that_do_not_hold():
    found = [
        {
            "races": [{"title": "race", "choosing": {"a": [1.0]}, "seconds": {"us": [us], "a": [1.0]},
                       "temp_bytes": {"us": 4, "a": 2}}],
            "rows": [{"what": "a gradient", "against": "jax", "race": "race", "over": "us", "under": harness.FASTEST,
                      "time_at_most": 1.03, "memory_at_most": 3}],
            "values": [{"text": "seconds", "value": us, "at_most": 0.95}],
        }
        for us in (0.9, 1.1)
    ]  # fmt: skip
    [row], [value] = harness.rows(found, harness.pooled(found)), harness.values(found)
    assert row["time_in_words"] == "1.00 (0.90 to 1.10), a tie"
    assert [claim["holds"] for claim in row["claims"]] == [False, True]
    assert value["in_words"] == "1.00 (0.90 to 1.10)"
    assert value["holds"] is False
    machine = {"jax": "1.2", "load before": 0.1}
    result = {"program": "p", "quick": False, "machine": machine, "processes": 2, "rounds": 1, "notes": ["a note"]}
    text = all_programs.table([result | {"rows": [row], "values": [value]}])
    assert "| a gradient | jax | 1.00 (0.90 to 1.10), a tie | 2.00 | `p` |" in text
    assert "* a gradient, against jax: time is claimed to be at most 1.03" in text
    assert "* seconds is claimed to be at most 0.95" in text
    assert "memory is claimed" not in text


def test_every_benchmark_is_in_the_table_or_is_not_about_speed():
    others = {"all", "harness", "mlps", "training", "fit_memory", "on_accelerator"}
    others |= {"shipped_rules", "what_each_checker_catches", "bfloat16_weight_gradients", "parity_with_pytorch"}
    others |= {"parity_with_backpack", "where_the_time_goes"}
    assert {path.stem for path in BENCH.glob("*.py")} == others | set(all_programs.PROGRAMS)
    assert training.in_a_scan is on_accelerator.training.in_a_scan


def ran(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=BENCH.parent)


def test_a_benchmark_runs_in_fresh_processes_and_its_table_is_written(tmp_path: Path):
    done = ran("bench/all.py", "--quick", "--only", "one_gradient", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "one_gradient_costs_no_more_than_jax_grad.json").read_text())
    assert result["processes"] == 2
    assert {"jax", "dtype", "cores"} < set(result["machine"])
    assert [len(row["time"]["each"]) for row in result["rows"]] == [2] * 4
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("A smoke test")
    assert text.count("`one_gradient_costs_no_more_than_jax_grad` |") == 4


# -- the program for accelerators -------------------------------------------------------------------------------------


def test_the_program_for_accelerators_runs_on_a_cpu(tmp_path: Path):
    """Some of its rows, of every section."""
    names = ["layer, residual", "readouts, dense without bias", "cost, Huber", "a wrong rule is caught", "donated",
             "squared norms, wide", "races: attention, bfloat16", "a step of GPT-2"]  # fmt: skip
    file = tmp_path / "found.json"
    done = ran("bench/on_accelerator.py", "--json", str(file), "--small", *(f"--only={name}" for name in names))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["section"] for row in rows} == {"laws", "compare", "programs", "races"}
    assert all(any(name in f"{row['section']}: {row['name']}" for row in rows) for name in names)
    settings = [row["setting"] for row in rows if row["name"] == "layer, residual"]
    assert settings == ["float32, highest", "bfloat16", "float32"]
    assert all(row["ok"] for row in rows if row["section"] != "races")
    assert all(0 < row["autodiff_off_by"] < 0.1 for row in rows if row["section"] == "laws")  # float64 is another
    race = [row for row in rows if row["section"] == "races" and "ms" in row]
    rivals = {"jbp", "one jax.grad", "vmap(grad), one by one", "jax.vjp of jax.nn", "jax.grad: jax.nn, scanned"}
    assert {row["rival"] for row in race} >= rivals
    assert all(row["ms"] > 0 and row["temp_mb"] > 0 for row in race)
    assert "0 rows are wrong." in done.stdout


def findings(tmp_path: Path) -> on_accelerator.Findings:
    return on_accelerator.Findings(tmp_path / "found.json")


def test_a_row_that_fails_loses_no_other(tmp_path: Path):
    def fails():
        raise ValueError("no such kernel")

    def section(of):
        of.row("before", lambda: {"ok": True})
        of.row("broken", fails)
        of.row("after", lambda: {"ok": True, "worst": 0.5})

    def broken(of):
        raise RuntimeError("no such device")

    found = findings(tmp_path)
    sections = {"laws": section, "compare": broken, "races": section}
    on_accelerator.measure(found, sections, total=1e6, small=True)
    rows = json.loads(found.file.read_text())["rows"]
    assert [(row["section"], row["name"], row["ok"]) for row in rows] == [
        ("laws", "before", True), ("laws", "broken", False), ("laws", "after", True),
        ("compare", "the section", False),
        ("races", "before", True), ("races", "broken", False), ("races", "after", True),
    ]  # fmt: skip
    assert rows[1]["error"] == "ValueError: no such kernel"
    assert rows[3]["error"] == "RuntimeError: no such device"
    assert found.finish() == 1


def test_what_comes_after_its_time_is_said_not_to_have_run(tmp_path: Path):
    found = findings(tmp_path)
    asked = []
    over = on_accelerator.Section("laws", found, time.perf_counter() - 1, True)
    over.row("late", lambda: asked.append("late"))
    assert not asked
    assert json.loads(found.file.read_text())["rows"] == [
        {"section": "laws", "name": "late", "ok": None, "not_run": "its section's time was over"}
    ]
    assert "1 rows were not run: late" in on_accelerator.table(found)


def test_a_rival_that_cannot_be_made_leaves_the_rest(tmp_path: Path):
    def too_large():
        raise MemoryError("out of memory")

    def contest(small):
        rivals = {"jbp": on_accelerator.called(lambda: training.np.ones(3)), "peer": on_accelerator.Rival(too_large)}
        return on_accelerator.Contest("size", rivals)

    found = findings(tmp_path)
    section = on_accelerator.Section("races", found, time.perf_counter() + 60, True)
    with ThreadPoolExecutor(2) as pool:
        entered = on_accelerator.entered(pool, contest, True)
        on_accelerator.race(section, "a race", entered, section.deadline, section.deadline)
    peer, ours = found.rows
    assert peer["name"] == "a race: peer"
    assert peer["error"] == "MemoryError: out of memory"
    assert ours["rival"] == "jbp"
    assert ours["ms"] > 0


def test_a_result_that_is_another_is_wrong(tmp_path: Path):
    def contest(small):
        ours, theirs = (on_accelerator.called(lambda x=x: [training.jnp.float32(x)]) for x in (1, 2))
        return on_accelerator.Contest("size", {"jbp": ours, "peer": theirs})

    found = findings(tmp_path)
    section = on_accelerator.Section("races", found, time.perf_counter() + 60, True)
    with ThreadPoolExecutor(2) as pool:
        entered = on_accelerator.entered(pool, contest, True)
        on_accelerator.race(section, "a race", entered, section.deadline, section.deadline)
    assert (found.rows[0]["name"], found.rows[0]["ok"]) == ("a race: peer", False)


def test_a_law_that_is_broken_is_wrong():
    exact = training.np.ones(4)
    right, wrong = (training.jnp.full(4, 1 + error, "float32") for error in (1e-7, 1e-5))
    assert on_accelerator.judged(right, right, [exact], "float32")["ok"]
    assert not on_accelerator.judged(wrong, right, [exact], "float32")["ok"]
    assert not on_accelerator.judged(right * training.np.nan, right, [exact], "float32")["ok"]
