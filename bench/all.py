"""Every row of the README's table of speed, measured anew: one command, about three hours on 2 idle cores.

    python bench/all.py                                   # into bench/results: table.md, NAME.json, NAME.txt
    python bench/all.py --quick --out /tmp/results        # a smoke test on small sizes, whose figures mean nothing

Each program runs by itself, in fresh processes, one after another; what one cannot do is said, and the rest goes on.
`table.md` is rewritten after each program: the rows as the README has them, the other numbers, the notes, the machine.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = (
    "one_gradient_costs_no_more_than_jax_grad",
    "gradient_on_the_vector_beats_ravel_pytree",
    "training_step_on_the_vector",
    "epoch_of_the_texts_network",
    "per_example_norms_cost_one_pass",
    "clipped_sums_cost_one_pass",
    "comparing_costs_twenty_gradients",
    "attention",
    "transformers",
    "linear_cross_entropy",
    "curvature",
    "any_model",
)


def table(results: list[dict]) -> str:
    """The results in Markdown; claims that don't hold are marked."""
    lines = ["| what | against | time | memory | program |", "|---|---|---|---|---|"]
    for result in results:
        for row in result["rows"]:
            memory = "" if row["memory"] is None else f"{row['memory']:.2f}"
            cells = row["what"], row["against"], row["time_in_words"], memory, f"`{result['program']}`"
            lines.append("| " + " | ".join(cells) + " |")
    others = [f"* {value['text']}: {value['in_words']}" for result in results for value in result["values"]]
    broken = [
        f"* {row['what']}, against {row['against']}: {claim['of']} is claimed to be at most {claim['at_most']:g}"
        for result in results for row in result["rows"] for claim in row["claims"] if not claim["holds"]
    ] + [
        f"* {value['text']} is claimed to be at most {value['at_most']:g}"
        for result in results for value in result["values"] if not value["holds"]
    ]  # fmt: skip
    notes = [f"* `{result['program']}`: {note}" for result in results for note in result["notes"]]
    sizes = {(result["processes"], result["rounds"]) for result in results}
    machines = {
        ", ".join(f"{name} {value}" for name, value in result["machine"].items() if name != "load before")
        for result in results
    }
    parts = {
        "": lines,
        "Other numbers": others,
        "Claims that don't hold in every process": broken,
        "Notes": notes,
        "Machine": [*sorted(machines), f"(processes, rounds in each): {sorted(sizes)}",
                    f"load before: {[result['machine']['load before'] for result in results]}"],
    }  # fmt: skip
    text = "\n\n".join((f"{title}:\n\n" if title else "") + "\n".join(part) for title, part in parts.items() if part)
    if any(result["quick"] for result in results):
        text = "A smoke test on small sizes: these figures mean nothing.\n\n" + text
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    parser.add_argument("--only", default="", metavar="TEXT", help="only programs with this in their name")
    parser.add_argument("--quick", action="store_true", help="a smoke test on small sizes")
    parser.add_argument("--processes", type=int, help="fresh processes of each program")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    passed_on = ["--quick"] * options.quick
    if options.processes:
        passed_on += ["--processes", str(options.processes)]

    results, failed, begun = [], [], time.perf_counter()
    for name in (name for name in PROGRAMS if options.only in name):
        start, file = time.perf_counter(), options.out / f"{name}.json"
        command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), "--json", str(file), *passed_on]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        (options.out / f"{name}.txt").write_text(done.stdout)
        print(done.stdout, f"({name}: {time.perf_counter() - start:.0f} s)\n", sep="\n", flush=True)
        if done.returncode:
            failed.append(name)
        else:
            results.append(json.loads(file.read_text()))
            (options.out / "table.md").write_text(table(results))
    print(f"{options.out / 'table.md'}, {time.perf_counter() - begun:.0f} s in all")
    if failed:
        sys.exit(f"These did not run to their end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
