"""The report's files: what a page holds, its size, what it refuses, and the figures for papers."""

import json
import re

import numpy as np
import pytest

from experiments.align import compare, records
from experiments.align.errors import RecordError
from experiments.report import __main__ as report_main
from experiments.report import alignment_page, detail, export, figures, html, maps, run_file
from experiments.report.page import Figure, Page, Section, Table
from tests.experiments import made_up_run, toy


@pytest.fixture(scope="module")
def failed_run(tmp_path_factory):
    return made_up_run.write(tmp_path_factory.mktemp("run"), prompts=("p4_sys", "p5_ba"))


@pytest.fixture(scope="module")
def text(failed_run):
    return html.render(alignment_page.page(failed_run))


def test_the_verdict_comes_first_and_in_words(text):
    body = text.partition("<body>")[2]
    assert body.index("<h1>FAIL</h1>") < body.index("<nav") < body.index("<section")
    assert "attn.out of layer 1 is wrong, first at position 0" in body
    assert "its own error is 1.23e+03 times what rounding can do" in body


def test_every_section_has_a_command_and_every_plot_its_table(failed_run):
    sections = alignment_page.page(failed_run).sections
    assert len(sections) >= 12
    for section in sections:
        assert section.command.startswith("python -m experiments.b3_20"), section.title
        assert section.table and section.table.rows, section.title


def test_the_page_says_what_the_judge_knows_beside_errors(failed_run):
    sections = {s.heading: s for s in alignment_page.page(failed_run).sections}
    assert sections["Coverage"].table.rows[1:] == [
        ("not looked at", "layers 3-30"),
        ("not looked at", "prefill in batches"),
    ]
    flips = [row for row in sections["Next tokens, p5_ba"].table.rows if row[-1] != "same"]
    assert [(row[0], row[-1]) for row in flips] == [(1, "unexplained")]
    margin = sections["A margin taken apart, position 1, p5_ba"].table.rows
    assert margin[1] == ("layers 1 to 30, not judged", -0.1)
    assert margin[-2][1] == pytest.approx(-0.3)
    floors = sections["Floors and what would have been seen, p5_ba"].table.rows
    assert floors == [("attn.out", 1e-5, 1e-6, 0.1, 0.9, None, None, 0.032)]
    inherited = sections["What attn.out inherited, by input, p5_ba"].table.rows
    assert inherited[2] == ("2", 1e-5, 2e-5, 3e-5, 4e-5) and len(inherited) == 32
    assert "K of layer 1, slot 4, overwritten later in step 7" in (
        sections["Faults of the cache, p5_ba"].words
    )


def test_a_section_of_one_prompt_repeats_with_that_prompt_alone(failed_run):
    commands = {s.heading: s.command for s in alignment_page.page(failed_run).sections}
    assert commands["Errors by layer and site, p5_ba"].endswith("experiments.b3_20 --prompt=p5_ba")


def test_nothing_in_the_file_comes_from_a_network(text):
    page = text.replace(html._vega(), "")
    outside = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)", page)
    assert outside == ["data:,"]
    assert "@import" not in page.partition("</style>")[0]


def test_text_of_a_run_cannot_become_markup(text):
    assert "&lt;b&gt;made up&lt;/b&gt; &lt;/script&gt; &amp; not run" in text
    assert "<b>made up" not in text


@pytest.mark.parametrize("prompts, tokens", [(2, 520), (4, 130), (12, 65)])
def test_long_prompts_over_all_layers_stay_below_the_limit(prompts, tokens, tmp_path):
    names = [f"long_{n}" for n in range(prompts)]
    run = made_up_run.write(tmp_path, prompts=names, tokens=tokens)
    path = html.write(tmp_path / "page.html", alignment_page.page(run))
    assert path.stat().st_size < html.LIMIT_BYTES


def test_a_clean_run_has_no_section_of_a_divergence(tmp_path):
    page = alignment_page.page(made_up_run.write(tmp_path, exit_code=0))
    assert page.tone == "pass" and page.sections[0].title == "Errors by layer and site"
    assert page.sentences[0].startswith("The engine agrees with the oracle")


def test_a_run_that_judged_nothing_still_gets_a_page(tmp_path):
    run = {"experiment": "b3_20", "exit_code": 1, "verdict": "FAIL", "command": "python -m x"}
    page = alignment_page.page(run_file.write(tmp_path, run))
    assert "<h1>FAIL</h1>" in html.render(page)


def test_maps_of_verdicts_hold_every_judgement():
    found = verdicts()
    drawn = maps.of(found)
    assert drawn.places == tuple((v.layer, v.site) for v in found)
    for p, site_verdict in enumerate(found):
        for t, judgement in enumerate(site_verdict.judgements):
            assert drawn.numbers["local_over_floor"][p, t] == judgement.ratio_max
            assert drawn.numbers["total_mae"][p, t] == judgement.total.mae
            assert maps.STATUSES[drawn.statuses_PT[p, t]] == judgement.status
            groups = drawn.groups_PTG[p, t]
            assert np.nanmax(groups) == np.float32(judgement.ratio_max)


def verdicts():
    reference = toy.oracle()
    places = [(-1, "embed")] + [(layer, toy.SITE) for layer in range(toy.LAYERS)]
    return [
        compare.judge_site(reference, toy.engine(), toy.ARITHMETIC, toy.DECLARED, *place)
        for place in places
    ]


def test_maps_come_back_from_disk_as_they_were(tmp_path):
    drawn = made_up_run.made_up_maps(layers=3, tokens=7)
    found = maps.load(maps.save(tmp_path / "maps.npz", drawn))
    assert found.places == drawn.places and found.kv_position == drawn.kv_position
    for name, array in drawn.numbers.items():
        np.testing.assert_array_equal(found.numbers[name], array)
    np.testing.assert_array_equal(found.groups_PTG, drawn.groups_PTG)


@pytest.mark.parametrize("damage", ["cut off", "not an archive", "absent"])
def test_damaged_maps_are_refused_by_name(tmp_path, damage):
    path = maps.save(tmp_path / "maps.npz", made_up_run.made_up_maps(layers=2, tokens=3))
    whole = path.read_bytes()
    path.write_bytes(
        {"cut off": whole[: len(whole) // 2], "not an archive": b"no"}.get(damage, b"")
    )
    if damage == "absent":
        path.unlink()
    with pytest.raises(RecordError, match="maps.npz"):
        maps.load(path)


def test_codes_are_within_half_a_step_and_keep_what_is_not_a_number():
    ratio = np.array([0.0, 1e-12, 1e-9, 0.1, 1.0, 1234.5, 1e9, np.inf, np.nan])
    found = detail.decode(detail.code(ratio))
    step = 10 ** (1 / detail.STEPS_PER_DECADE / 2)
    middle = slice(2, 6)
    assert (np.abs(np.log(found[middle] / ratio[middle])) <= np.log(step)).all()
    assert found[0] == found[1] == 0 and np.isinf(found[6:8]).all() and np.isnan(found[8])


@pytest.mark.parametrize("ratio, band", [(0.0, 0), (1.0, 3), (np.nextafter(1, 2), 4), (1e9, 6)])
def test_colours_change_sides_exactly_at_the_floor(ratio, band):
    values = [{"site": "q", "layer": "0", "local": ratio, "propagated": None, "status": ""}]
    axes = ("site", ["q"]), ("layer", ["0"])
    svg = export.vl_convert.vegalite_to_svg(
        export.literal(figures.heat_map(values, *axes, ("", ""), parts=True))
    )
    cell = re.search(r'aria-roledescription="rect mark"[^>]*fill="([^"]+)"', svg)
    assert cell[1] == figures.PALETTE[f"band-{band}"][0]


def test_positions_put_together_show_their_largest_error():
    errors = np.array([[1.0, np.nan, 5.0, 2.0, np.nan]])
    runs = detail.bins(5, 3)
    assert [detail.label(run) for run in runs] == ["0-1", "2-3", "4"]
    np.testing.assert_array_equal(detail.binned_max(errors, runs), [[1.0, 5.0, np.nan]])


def test_figures_for_papers_are_images_in_both_forms_and_parts(failed_run, tmp_path):
    page = alignment_page.page(failed_run)
    kept = [
        s for s in page.sections if s.heading.startswith(("Errors by layer and site, p4", "Route"))
    ]
    written = export.write(tmp_path, Page(page.title, "", "", [""], [], kept, ""))
    names = {path.name for path in written}
    assert {"layer_by_site_p4_sys_local.svg", "layer_by_site_p4_sys_propagated.png"} <= names
    for path in written:
        head = path.read_bytes()[:300]
        assert head.startswith(b"\x89PNG" if path.suffix == ".png" else b"<svg"), path.name
        assert b"var(--" not in path.read_bytes()


def test_the_command_makes_the_page_again(failed_run, capsys):
    made = failed_run.folder / "b3_20.html"
    assert report_main.main(["report", f"--run={failed_run.folder}"]) == 0
    assert capsys.readouterr().out.strip() == str(made) and made.stat().st_size > 0


@pytest.mark.parametrize("argument", ["", "--run=/nowhere", "--run=x --runn=y", "surplus"])
def test_the_command_refuses_in_one_line(argument, capsys):
    assert report_main.main(["report", *argument.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_file_that_lacks_its_verdict_is_refused(tmp_path):
    path = tmp_path / "b3_20_run.json"
    path.write_text(json.dumps({"experiment": "b3_20", "exit_code": 0}))
    with pytest.raises(RecordError, match="lacks verdict, command"):
        run_file.read(path)


def test_a_full_disk_keeps_the_page_of_before(failed_run, tmp_path, monkeypatch):
    path = html.write(tmp_path / "page.html", alignment_page.page(failed_run))
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.Path, "write_text", full)
    with pytest.raises(RecordError, match="No space left"):
        html.write(path, alignment_page.page(failed_run))
    assert path.read_bytes() == before


def test_table_cells_are_aligned_and_toned():
    table = Table(("a", "b", "verdict"), [(1.5, None, "ok")], {"ok": "good"})
    assert [cell[:3] for cell in table.cells()[0]] == [
        *(("1.5", "", "number"), ("–", "", "text"), ("ok", "good", "text"))
    ]


def test_a_page_without_plots_carries_no_plotting_library():
    sections = [Section("Only words", "Nothing to draw.", table=Table(("a",), [(1,)]))]
    text = html.render(Page("x", "PASS", "pass", ["Fine."], [], sections, "python -m x"))
    assert len(text) < 30_000 and "vegaEmbed=" not in text


def test_a_figure_that_is_no_vega_lite_is_not_drawn_as_if_it_were():
    with pytest.raises(ValueError):
        export.vl_convert.vegalite_to_svg(export.literal(Figure("x", {"mark": "heat"}, "").spec))
