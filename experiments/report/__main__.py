"""Makes the HTML page of a run again, from the files the run left; no model is run.

Examples:
  python -m experiments.report --run=artifacts/alignment/2026-01-31       every run of a folder
  python -m experiments.report --run=out/b3_20_run.json --figures=figures   PNG and SVG too

Exit codes: 0 written; 2 the files are missing, not a run's, or cannot be written.
"""

import sys
from pathlib import Path

from absl import flags

from experiments.align.errors import AlignError
from experiments.report import export, html, pages, run_file

_FLAGS = (
    (flags.DEFINE_string, "run", None, "Folder of a run, or its *_run.json."),
    (flags.DEFINE_string, "figures", None, "Folder for PNG and SVG of every figure."),
)


def main(argv: list[str]) -> int:
    values = flags.FlagValues()
    for definer, *arguments in _FLAGS:
        definer(*arguments, flag_values=values)
    if "--help" in argv:
        print(f"{__doc__.strip()}\n\nFlags:\n{values.module_help(sys.modules[__name__])}")
        return 0
    try:
        if (rest := values(argv)[1:]) or not values.run:
            raise flags.Error(f"unexpected {rest[0]!r}" if rest else "--run=FOLDER is needed")
        place = Path(values.run)
        for run in run_file.find(place) if place.is_dir() else [run_file.read(place)]:
            page = pages.page(run)
            print(html.write(run.folder / f"{run.experiment}.html", page))
            for path in export.write(Path(values.figures), page) if values.figures else []:
                print(path)
    except (AlignError, flags.Error) as error:
        print(f"report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
