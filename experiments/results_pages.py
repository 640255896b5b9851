"""Writes the pages of results from the records: one an experiment, and the short one before them.

    python experiments/results_pages.py              # all: the pages of docs/results/ too
    python experiments/results_pages.py --short      # docs/results.md and README's table alone

README's table stands between `<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from summary_table import CLASSIFIER_SETTINGS, records_of, seeds_tables, table

from hrp.files import write_text
from hrp.report.table import Table
from hrp_lab.report.markdown import write_page
from hrp_lab.report.summary import classifiers_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README_MARKS = "<!-- results:begin -->", "<!-- results:end -->"


ALL = ("",)
FEW = ("differences", "sweep", "trade-off")


class Page(NamedTuple):
    """Names what a page of docs/results/ shows.

    Args:
        title: of the page.
        about: what it answers.
        experiments: whose records it shows.
        figures: endings of the names of its figures.
    """

    title: str
    about: str
    experiments: Sequence[str]
    figures: tuple[str, ...] = FEW


KEPT = {
    "kept-gsm8k-450": Page(
        "GSM8K, 450 steps",
        "every way to charge preheating, DoRA, LoRA-Squeeze",
        ["kept-gsm8k-450"],
        ALL,
    ),
    "kept-gsm8k-930": Page("GSM8K, 930 steps", "the same, twice as long", ["kept-gsm8k-930"], ALL),
    "kept-gsm8k-1860": Page(
        "GSM8K, 1860 steps", "four times as long, with forgetting", ["kept-gsm8k-1860"], ALL
    ),
    "kept-gsm8k-forgetting": Page(
        "GSM8K, what is forgotten",
        "and exact answers, at best rates",
        ["kept-gsm8k-forgetting", "kept-gsm8k-forgetting-930"],
    ),
    "kept-gsm8k-ranks": Page(
        "GSM8K, ranks 8, 16 and 32",
        "450 steps",
        ["kept-gsm8k-r8", "kept-gsm8k-r16", "kept-gsm8k-r32"],
    ),
    "kept-gsm8k-variants": Page(
        "GSM8K, variants", "rsLoRA, LoRA+, random directions", ["kept-gsm8k-variants"]
    ),
    "kept-gsm8k-tries": Page(
        "GSM8K, what else was tried",
        "warm-up, rate, length, statistics",
        ["kept-gsm8k-tries", "kept-gsm8k-warmup"],
    ),
    "kept-function-names": Page(
        "Function names",
        "the standard library's docstrings",
        ["kept-function-names", "kept-function-names-450"],
    ),
    "kept-wordproblems": Page("Word problems", "the demo's task", ["kept-wordproblems"]),
    "kept-classifiers": Page(
        "CoLA and SST-2, by seed",
        "warm-up, length, the head kept or dropped",
        ["kept-cola", "kept-sst2", "kept-classifiers-short"],
    ),
}
EARLIER = {
    "earlier-gsm8k": Page(
        "Every start on GSM8K",
        "450 and 930 steps, at equal steps and at equal FLOPs",
        [
            "standin-gsm8k-450",
            "standin-gsm8k-930",
            "standin-gsm8k-compute",
            "standin-gsm8k-compute-930",
        ],
        (),
    ),
    "earlier-ablation": Page(
        "Ablation",
        "R, K and direction on GSM8K, R and K on word problems",
        ["standin-ablation", "ablation-rule-wordproblems", "ablation-wordproblems"],
        ("450-hrp-ab (plain cut)-ablation",),
    ),
    "earlier-classifiers": Page(
        "Every start on CoLA and SST-2",
        "preheating too hot, its rate and its length",
        [
            "standin-cola",
            "standin-sst2",
            "standin-cola-preheating-rate",
            "standin-glue-rule",
            "standin-cola-default",
        ],
        (),
    ),
}
SUPERSEDED = (
    "These records are older than the cut in the metric of the loss. Their HRP arms were cut by "
    "the plain SVD and kept nothing else, which their names say; `hrp-ab (plain cut)` is what "
    "`hrp-ab-frobenius` is now."
)
TRACE = (
    "`hrp-lab bench list` says what each arm is, "
    "[the benchmark](../benchmark.md#what-is-held-equal) what a budget is. Every number is traced "
    "to its records below. The page is made by `experiments/results_pages.py`."
)


def write_experiments() -> None:
    """Write the pages of the experiments, with figures."""
    figures = DOCS / "figures"
    for name, page in (KEPT | EARLIER).items():
        text = TRACE if name in KEPT else f"{SUPERSEDED}\n\n{TRACE}"
        if name == "kept-classifiers":
            by_seed = "\n".join(seeds.markdown() for seeds in seeds_tables(page.experiments))
            text += f"\n\n## Scores by seed\n\n{by_seed}"
        if name == "kept-gsm8k-forgetting":
            text += f"\n\n## Forgetting and exact answers\n\n{table('exact').markdown()}"
        out = DOCS / "results" / f"{name}.md"
        write_page(
            records_of(page.experiments), out, page.title, reading=text, figures_folder=figures,
            drawn=page.figures,
        )  # fmt: skip
        print(out, flush=True)
    texts = [*(DOCS / "results").glob("*.md"), DOCS / "theory.md"]
    used = set(re.findall(r"figures/([^)]+\.png)", "".join(p.read_text("utf-8") for p in texts)))
    for path in figures.glob("*.png"):
        if path.name not in used and not path.name.startswith("theory-"):
            path.unlink()  # drawn for an earlier form of these pages


def _reading(name: str) -> str:
    return (ROOT / "experiments" / f"reading-{name}.md").read_text(encoding="utf-8")


def readings() -> dict[str, str]:
    """Return the pages that a person wrote: what follows from the records, new and earlier."""
    listed = "".join(
        f"- [{page.title}]({name}.md): {page.about}\n" for name, page in EARLIER.items()
    )
    return {
        "reading": f"# What the records say\n\n{_reading('kept').replace('<!-- more -->', '')}",
        "reading-earlier": f"# What the earlier records say\n\n{SUPERSEDED}\n\n"
        f"{_reading('results').rstrip()}\n\n## The experiments\n\n{listed}",
    }


def main_page() -> str:
    """Return the text of docs/results.md."""
    reading = "[the reading](results/reading.md)"
    links = "; ".join(f"[{page.title}](results/{name}.md)" for name, page in KEPT.items())
    parts = [
        "# Results\n",
        _reading("kept").partition("<!-- more -->")[0],
        f"What speaks for HRP, the goals and why some were missed: {reading}.\n",
        "## GSM8K, a 30 M-parameter Llama, rank 4\n",
        table("short").markdown(),
        "## The comparisons that decide, by length and rank\n",
        table("pairs").markdown(),
        "## What preheating is charged\n",
        table("charging").markdown(),
        "## CoLA and SST-2, MiniLM, five seeds, 400 steps\n",
        classifiers().markdown(),
        "## Every experiment\n",
        f"{links}. [Earlier ones](results/reading-earlier.md), HRP cut by the plain SVD.",
        "What HRP [costs](costs.md); how to [make such tables](benchmark.md).",
    ]
    return "\n".join(parts).rstrip() + "\n"


def classifiers() -> Table:
    """Return the table of both classifiers: LoRA, and HRP, its head kept, at what tells most."""
    short = records_of(["kept-classifiers-short"])
    by_task = [
        {
            "CoLA": [record for record in short if record.run.task == "glue-cola"],
            "SST-2": [record for record in short if record.run.task == "glue-sst2"],
        },
        {"CoLA": records_of(["kept-cola"]), "SST-2": records_of(["kept-sst2"])},
    ]
    twentieth, sixth = (classifiers_table(records, CLASSIFIER_SETTINGS) for records in by_task)
    rows = [*twentieth.rows, *sixth.rows[1:]]
    told = [row for row in rows if row[3] != "0.1" and row[4] != "no"]
    told = [row for row in told if row[2:4] != ("0.001", "0.3")]
    return Table(sixth.caption, sixth.header, tuple(told))


def write_short() -> None:
    """Write docs/results.md, the readings, and README's table."""
    write_text(DOCS / "results.md", main_page())
    for name, text in readings().items():
        write_text(DOCS / "results" / f"{name}.md", text)
    readme = ROOT / "README.md"
    write_text(readme, with_table(readme.read_text(encoding="utf-8")))


def with_table(readme: str) -> str:
    """Return README with its table anew between the marks; unchanged without them."""
    begin, end = README_MARKS
    made = f"{begin}\n{table('readme').markdown().rstrip()}\n{end}"
    return re.sub(f"{begin}.*?{end}", lambda _: made, readme, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="docs/results.md and README alone")
    if not parser.parse_args().short:
        write_experiments()
    write_short()


if __name__ == "__main__":
    main()
