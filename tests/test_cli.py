"""The command line: what it says, writes and returns, and the one line that each bad word of it gets."""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys

import jax
import pytest
from cases import entry

import jbp
from jbp.__main__ import main, understood
from jbp.commands import COMMANDS, draw, explain, flow
from jbp.commands.train import Settings

TINY = ["--widths", "3", "--epochs", "1", "--batch", "479"]  # 3 batches, none short


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    """Nothing here depends on how well programs are compiled, or how long they are timed."""
    monkeypatch.setattr(sys.modules["jbp.programs.clock"], "SECONDS", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


ERRORS = {
    "--foo 3": "--foo: jbp has no such option. See: jbp --help",
    "--epoch 3": "--epoch: jbp has no such option. Did you mean --epochs?",
    "train --epoch=3": "--epoch: jbp train has no such option. Did you mean --epochs?",
    "train -e 3 --foo": "-e, --foo: jbp train has no such option. See: jbp train --help",
    "--lr 0": "--learning-rate/--lr: expected a number above 0, got '0'. Write for example 0.1.",
    "train compare": "compare: expected a command first, then options --name VALUE. See: jbp train --help",
    "trian": "command: expected one of train, compare, check, draw, explain, flow, got 'trian'. Did you mean train?",
    "--widths": "--widths: expected one argument. See: jbp --help",
    "--widths 0": "--widths: expected whole numbers from 1 to 65536 with commas between, got '0'. "
    "Write for example 30,20.",
    "--widths 30,x": "--widths: expected whole numbers from 1 to 65536 with commas between, got '30,x'. "
    "Write for example 30,20.",
    "--activation sigmod": "--activation: expected one of sigmoid, identity, tanh, relu, leakyrelu, elu, selu, gelu, "
    "silu, softplus, logsigmoid, softmax, got 'sigmod'. Did you mean sigmoid?",
    "--loss l1": "--loss: expected one of half-squared, squared, huber, softmax, sigmoid, got 'l1'. "
    "Write for example half-squared.",
    "--optimizer adan": "--optimizer: expected one of sgd, momentum, rmsprop, lion, adagrad, adam, adamw, nadam, "
    "radam, adamax, adabelief, got 'adan'. Did you mean adam?",
    "--learning-rate nan": "--learning-rate/--lr: expected a number above 0, got 'nan'. Write for example 0.1.",
    "--learning-rate inf": "--learning-rate/--lr: expected a number above 0, got 'inf'. Write for example 0.1.",
    "--batch 0": "--batch: expected a whole number above 0, got '0'. Write for example 10.",
    "compare --epochs 1.5": "--epochs: expected a whole number above 0, got '1.5'. Write for example 100.",
    "--precision float16": "--precision: expected one of float32, bfloat16, float64, got 'float16'. "
    "Did you mean bfloat16?",
    "--seed -1": "--seed: expected a whole number from 0 to 2147483647, got '-1'. Write for example 0.",
    "--json /no/such/folder/run.json": "--json: expected a file that can be written, got '/no/such/folder/run.json' "
    "(No such file or directory). Name one in a folder of yours.",
    "--plot /": "--plot: expected a file that ends in .png, .svg, .pdf, got '/'. Write for example run.png.",
    "--plot run.gif": "--plot: expected a file that ends in .png, .svg, .pdf, got 'run.gif'. "
    "Write for example run.png.",
    "draw net": "draw: expected one of network, computation, single, got 'net'. Did you mean network?",
    "draw single b^2_0": "b^2_0: expected a command first, then options --name VALUE. See: jbp draw --help",
    "draw --epochs 3": "--epochs: jbp draw has no such option. See: jbp draw --help",
    "flow --nope 3": "--nope: jbp flow has no such option. See: jbp flow --help",
    "draw --out net.jpg": "--out: expected a file that ends in .svg, .png, .pdf, .dot, .gv, .mmd, .md, got 'net.jpg'. "
    "Write for example network.svg.",
    "draw --out /no/such/folder/net.svg": "--out: expected a file that can be written, got '/no/such/folder/net.svg' "
    "(No such file or directory). Name one in a folder of yours.",
    "draw --max-neurons 0": "--max-neurons: expected a whole number above 0, got '0'. Write for example 10.",
    "draw --digit 1437": "--digit: expected a whole number from 0 to 1436, got '1437'. Write for example 0.",
    "draw single --widths 3 --symbol w^2_{9<-7}": "layout.index: unknown symbol 'w^2_{9<-7}'. "
    "The nearest is w^2_{2←7}, of w^2_{0←0} … w^2_{2←63}.",
    "draw --symbol b^2_0": "--symbol: in the usual graph weights are edges, so there is none to follow. "
    "Write jbp draw single --symbol 'b^2_0', or jbp draw computation.",
    "explain": "explain: expected a weight or bias, got none. Write for example jbp explain 'w^2_{3<-7}'",
    "explain --widths 3 b^9_0": "layout.index: unknown symbol 'b^9_0'. The nearest is b^3_0, of b^3_0 … b^3_9.",
    "explain b^2_0 --out a.tex": "--out: expected a file that ends in .html, .md, .txt, got 'a.tex'. "
    "Write for example argument.html.",
    "flow --out flow.md": "--out: expected a file that ends in .png, .svg, .pdf, got 'flow.md'. "
    "Write for example flow.svg.",
}


@pytest.mark.parametrize("line", ERRORS)
def test_a_bad_word_gets_one_line_on_stderr_and_exit_code_2(line, capsys):
    assert main(line.split()) == 2
    assert capsys.readouterr() == ("", f"jbp: {ERRORS[line]}\n")


@pytest.mark.parametrize(
    ("gone", "line", "name"),
    [
        ("rich.console", [], "rich"),
        ("matplotlib", ["--plot", "run.png"], "matplotlib"),
        ("matplotlib", ["draw"], "matplotlib"),
        ("matplotlib", ["flow", "--out", "flow.png"], "matplotlib"),
    ],
)
def test_without_the_extra_it_says_how_to_install_it(gone, line, name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, gone, None)
    monkeypatch.delitem(sys.modules, "jbp.figure", raising=False)
    assert main(line) == 2
    expected = f"jbp: {name} is not installed, and this needs it. Write: pip install 'jbp[cli]'\n"
    assert capsys.readouterr() == ("", expected)
    assert not list(tmp_path.iterdir())  # trying whether a file can be written leaves none behind


def test_every_option_reaches_the_settings(tmp_path):
    path = str(tmp_path / "run.json")
    line = (
        "compare --widths 4,5 --activation tanh --loss huber --optimizer lion --learning-rate 0.5 --batch 7 --epochs 2"
    )
    given = understood([*line.split(), "--precision", "float64", "--seed", "3", "--json", path])
    network = {"widths": (4, 5), "activation": "tanh", "loss": "huber", "precision": "float64", "seed": 3}
    descent = {"optimizer": "lion", "learning_rate": 0.5, "batch": 7, "epochs": 2}
    assert given == ("compare", Settings(**network, **descent, command="compare", json=path))
    line = "draw computation --symbol b^2_0 --digit 5 --max-neurons 4 --max-layers 6 --widths 4,5 --activation tanh"
    given = understood(
        [*line.split(), "--loss", "huber", "--precision", "float64", "--seed", "3", "--out", path + ".svg"]
    )
    drawn = {
        "graph": "computation",
        "symbol": "b^2_0",
        "digit": 5,
        "max_neurons": 4,
        "max_layers": 6,
        "out": path + ".svg",
    }
    assert given == ("draw", draw.Settings(**network, **drawn))
    given = understood(["explain", "--digit", "0", "w^2_{1<-2}", "--out", path + ".md"])  # the word anywhere
    assert given == ("explain", explain.Settings(symbol="w^2_{1<-2}", digit=0, out=path + ".md"))
    given = understood(["flow", "--json", path, "--optimizer", "adam", "--activation", "relu"])
    assert given == ("flow", flow.Settings(json=path, optimizer="adam", learning_rate=0.003, activation="relu"))


@pytest.mark.parametrize(
    ("line", "rate"),
    [("", 3.0), ("--activation relu", 0.1), ("--optimizer adam", 0.01), ("--learning-rate 2", 2.0), ("--lr 2", 2.0)],
)
def test_the_learning_rate_follows_optimizer_and_activation_unless_given(line, rate):
    assert understood(line.split())[1].learning_rate == rate


def test_train_compares_twice_and_writes_json_and_a_picture(capsys, tmp_path):
    numbers, picture = tmp_path / "run.json", tmp_path / "run.svg"
    assert main(["train", *TINY, "--json", str(numbers), "--plot", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "The network 64-3-10" in out
    assert "P = #W + #b = 222 + 13 = 235 weights and biases." in out
    assert out.count("The gradients agree: the error is") == 2
    assert "3 steps in 1 epochs." in out
    assert max(map(len, out.splitlines())) <= 80

    run = json.loads(numbers.read_text())
    assert run["ok"] is True
    assert run["settings"]["widths"] == [3]
    assert run["settings"]["learning_rate"] == 3.0
    assert run["parameters"] == {"P": 235, "#W": 222, "#b": 13}
    assert list(run["reports"]) == list(run["accuracy"]) == ["start", "end"]
    for report in run["reports"].values():
        assert report["ok"] is True
        assert [leaf["name"] for leaf in report["leaves"]] == ["value", "0.w", "0.b", "2.w", "2.b"]
    assert len(run["history"]["cost"]) == 3
    assert run["history"]["stopped"] is None
    assert run["history"]["epochs"][0]["accuracy"] == run["accuracy"]["end"]

    drawn = picture.read_text()
    for words in (
        "the two gradients agree",
        "hand-written",
        "autodiff",
        "Cost of the batch",
        "Accuracy on the held-out",
    ):
        assert words in drawn


def test_compare_stops_after_the_first_comparison(capsys, tmp_path):
    numbers, picture = tmp_path / "run.json", tmp_path / "run.png"
    line = f"--loss softmax --activation relu --precision float64 --json {numbers} --plot {picture}"
    assert main(["compare", *TINY, *line.split()]) == 0
    out = capsys.readouterr().out
    assert "L = 3 layers, relu, softmax loss, float64." in out
    assert "Descent" not in out
    run = json.loads(numbers.read_text())
    assert list(run["reports"]) == ["start"]
    assert run["reports"]["start"]["leaves"][0]["got"] == pytest.approx(2.303, abs=0.5)  # log 10: the loss has logits
    assert run["reports"]["start"]["total"]["allowed"] < 1e-12
    assert "history" not in run
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_a_wrong_gradient_gives_exit_code_1_and_is_named(capsys, monkeypatch):
    right = jbp.Dense.backward

    def flipped(self, params, feedback, saved, delta, read):
        delta_x, readings = right(self, params, feedback, saved, delta, read)
        return -delta_x, readings

    monkeypatch.setattr(jbp.Dense, "backward", flipped)
    assert main(["compare", "--widths", "7"]) == 1  # of a width of its own: a jitted function remembers the fault
    assert "The gradients DISAGREE, most in 0." in capsys.readouterr().out


def test_a_cost_that_is_not_finite_is_a_message_and_exit_code_1(capsys, tmp_path):
    numbers = tmp_path / "run.json"
    line = f"--activation identity --precision bfloat16 --learning-rate 1e30 --json {numbers} --plot {numbers}.png"
    assert main([*TINY, *line.split()]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "the last with a finite cost" in out
    assert out.count("The gradients agree") == 2
    history = json.loads(numbers.read_text())["history"]
    assert history["cost"][-1] in ("inf", "nan")
    assert "the cost became" in history["stopped"]


def test_no_argument_is_the_main_job(monkeypatch):
    asked = []
    monkeypatch.setattr("jbp.commands.train.run", lambda settings: asked.append(settings) or 0)
    monkeypatch.setattr(sys, "argv", ["jbp"])
    assert main() == 0
    assert asked == [Settings(learning_rate=3.0)]
    assert asked[0].command == "train"
    assert asked[0].name == "64-30-10"


def test_ctrl_c_is_one_line_and_exit_code_130(capsys, monkeypatch):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("jbp.commands.train.run", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "jbp: interrupted\n"


# -- draw, explain, flow ----------------------------------------------------------------------------------------------

SMALL = ["--widths", "3", "--seed", "2"]


def small():
    """(cost, θ, x, y) of the network that those options ask for."""
    return flow.Settings(widths=(3,), seed=2).job()[:4]


def test_draw_says_what_the_picture_has(capsys, tmp_path):
    cost, theta, x, y = small()
    gradient = jax.grad(cost)(theta, x[7:8], y[7:8])
    symbol, out = "w^2_{1←20}", str(tmp_path / "graph.mmd")
    for graph, title in (("computation", "The computational graph of"), ("single", f"The graph of {symbol} in")):
        assert main(["draw", graph, *SMALL, "--symbol", "w^2_{1<-20}", "--digit", "7", "--out", out]) == 0
        said, found = capsys.readouterr().out.splitlines()
        assert said == f"{title} the network 64-3-10: {out}"
        assert found.startswith(f"C of digit 7 = {cost(theta, x[7:8], y[7:8]):.4f}")
        assert float(found.split(" = ")[-1]) == entry(gradient, cost.layout.index(symbol), 4)
        assert f"{symbol}<br/>" in (tmp_path / "graph.mmd").read_text(encoding="utf-8")


def test_draw_shows_a_digit_that_the_symbol_counts_for(capsys, tmp_path):
    cost, theta, x, y = small()
    assert x[0, 16] == 0
    assert main(["draw", "single", *SMALL, "--symbol", "w^2_{1<-16}", "--out", str(tmp_path / "graph.dot")]) == 0
    found = float(capsys.readouterr().out.split()[-1])
    pair = cost.pairs(theta, x, y)["0.w"]
    assert abs(found) == pytest.approx(float(abs(pair.a[:, 0, 16] * pair.delta[:, 0, 1]).max()), rel=1e-4)
    assert found


def test_draw_says_that_many_edges_take_a_while(capsys, tmp_path):
    line = ["draw", "computation", "--widths", "20", "--max-neurons", "64", "--out", str(tmp_path / "graph.dot")]
    assert main(line) == 0
    assert "nodes and " in capsys.readouterr().err
    assert main(line[:4] + line[-2:]) == 0
    assert capsys.readouterr().err == ""


def test_draw_alone_is_the_usual_graph_and_single_alone_the_largest(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["draw", *SMALL]) == main(["draw", "single", *SMALL]) == 0
    cost, theta, x, y = small()
    largest = cost.layout.symbol(int(abs(jax.grad(cost)(theta, x[:1], y[:1])).argmax()))
    assert f"∂C/∂{largest} = " in capsys.readouterr().out
    for name in ("network.svg", "single.svg"):
        assert "</svg>" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", ["", ".md", ".html", ".txt"])
def test_explain_on_the_terminal_and_to_a_file(suffix, capsys, tmp_path):
    out = tmp_path / f"argument{suffix}"
    line = ["explain", "w^3_{4<-1}", *SMALL, "--digit", "5"] + ["--out", str(out)] * bool(suffix)
    assert main(line) == 0
    text = said = capsys.readouterr().out
    cost, theta, x, y = small()
    expected = entry(jax.grad(cost)(theta, x, y), cost.layout.index("w^3_{4←1}"), 4)
    if suffix:
        assert said.endswith(f", by induction: {out}\n")
        assert float(said.split(" = ")[1].split(",")[0]) == expected
        text = out.read_text(encoding="utf-8")
    start = {".md": "## $\\frac{", ".html": "<!doctype html>"}.get(suffix, "∂C/∂w^3_{4←1}, by induction\n")
    assert text.startswith(start)
    assert "1437 examples" in text
    assert "out for n = 5." in text


def test_flow_prints_writes_and_draws(capsys, tmp_path):
    numbers, picture = tmp_path / "flow.json", tmp_path / "flow.svg"
    line = [*SMALL, "--optimizer", "lion", "--learning-rate", "0.5", "--json", str(numbers), "--out", str(picture)]
    assert main(["flow", *line]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The network 64-3-10, sigmoid, half-squared loss: C = ")
    assert "Updates by lion at learning rate 0.5" in out
    assert "within 100" in out
    told = json.loads(numbers.read_text(encoding="utf-8"))
    cost, theta, x, y = small()
    assert told["cost"] == pytest.approx(float(cost(theta, x, y)), rel=1e-5)
    last = told["rows"][2]
    assert last["update"] == pytest.approx(0.5 * 40**0.5, rel=1e-3)  # Lion: the rate times a sign, at each of 40
    assert "</svg>" in picture.read_text(encoding="utf-8")


NOT_OF_COMPARE = ("optimizer", "learning_rate", "batch", "epochs")


def _option(name: str) -> re.Pattern:
    """An option in a help text: from Python 3.13 on, VALUE stands once behind all its names."""
    return re.compile(rf"  --{name.replace('_', '-')}(, --[\w-]+)* VALUE")


@pytest.mark.parametrize("command", ["train", "compare", "draw", "explain", "flow"])
def test_help_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    module = COMMANDS[command]
    words = {"draw": " [network | computation | single]", "explain": " SYMBOL"}.get(command, "")
    assert out.startswith(f"usage: jbp {command}{words} [--option VALUE ...]\n\n{module.__doc__.split('`')[0]}")
    for name, option in module.Settings.__dataclass_fields__.items():
        if not option.metadata or option.metadata.get("word"):
            continue
        shown = _option(name).search(out) is not None
        assert shown == (command != "compare" or name not in NOT_OF_COMPARE), name
    assert not [other for other in COMMANDS if other not in (command, "train", "compare") and f"jbp {other}" in out]


def test_version_says_what_a_report_of_a_fault_needs(capsys):
    assert main(["--version"]) == 0
    expected = f"jbp {importlib.metadata.version('jbp')}, jax {jax.__version__}, Python {platform.python_version()} on "
    assert capsys.readouterr().out.startswith(expected)


def test_python_m_jbp_help():
    done = subprocess.run([sys.executable, "-m", "jbp", "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith(f"usage: jbp [{' | '.join(COMMANDS)}] [--option VALUE ...]")
    for command in COMMANDS:
        assert f"jbp {command} " in done.stdout
    for name in Settings.__dataclass_fields__:
        assert name == "command" or _option(name).search(done.stdout)
