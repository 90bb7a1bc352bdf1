"""Where the effective configuration comes from."""

import subprocess
import sys

import pytest

from experiments import flags


def config(arguments=(), **environ):
    values = flags.define()
    values(["b3_20.py", *arguments])
    return flags.effective(values, environ, "artifacts")


def test_gretas_variables_are_defaults_and_the_source_is_kept():
    found = config(GRETA_TRACE_ATTN_LAYERS="0,5", GRETA_TRACE_ATTN_POINTS="q,attn_out")
    assert found.layers == "0,5" and found.points == ("q", "attn_out")
    sources = dict(found.sources)
    assert sources["layers"] == "GRETA_TRACE_ATTN_LAYERS" and sources["model"] == "default"


def test_a_flag_wins_over_a_variable():
    found = config(["--layers=7"], GRETA_TRACE_ATTN_LAYERS="0,5")
    assert found.layers == "7" and dict(found.sources)["layers"] == "flag"


def test_both_halves_of_a_route_have_their_variable():
    assert config(GRETA_FORCE_ATTN_DECODE_KERNEL="fused").route == "fused/valu"
    assert config(GRETA_FORCE_ATTN_DECODE_MATMUL="mfma").route == "manual/mfma"
    both = dict(GRETA_FORCE_ATTN_DECODE_KERNEL="auto", GRETA_FORCE_ATTN_DECODE_MATMUL="auto")
    assert config(**both).route == "auto/auto"
    assert config(["--route=manual/valu"], **both).route == "manual/valu"


@pytest.mark.parametrize("variable", sorted(flags.GRETA_VARIABLES))
def test_every_listed_variable_is_read(variable):
    value = {"layers": "3", "points": "q", "route": "auto"}.get(
        flags.GRETA_VARIABLES[variable], "0"
    )
    assert config(**{variable: value}) != config()


@pytest.mark.parametrize(
    "text, layers",
    [
        ("0,1,2,31", (0, 1, 2, 31)),
        ("3,0-2", (0, 1, 2, 3)),
        ("all", tuple(range(32))),
        ("5,5", (5,)),
    ],
)
def test_layers_are_lists_ranges_or_all(text, layers):
    assert flags.parse_layers(text, 32) == layers


def test_prompts_are_names_or_paths(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("mine")
    assert flags.prompt_text(str(own)) == "mine"
    assert flags.prompt_text("p0_short") == "Hi"


def test_the_system_prompt_is_metas_template():
    text = flags.prompt_text("p4_sys")
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are")
    assert text.endswith("Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_a_reader_that_leaves_early_does_not_change_the_exit_code():
    """As `| head` does; a run that failed must not pass, nor one that passed fail."""
    main = "lambda config: print('x\\n' * 1_000_000) or 3"
    program = f"import sys; from experiments import flags; sys.exit(flags.run({main}, 'Doc.'))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == flags.EXIT_INCONCLUSIVE
