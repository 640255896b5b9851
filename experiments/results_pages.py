"""Writes the pages of results from the records: one an experiment, and the short one before them.

    python experiments/results_pages.py              # all: docs/results/ and docs/ablation.md too
    python experiments/results_pages.py --short      # docs/results.md and README's table alone

README's table stands between `<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from summary_table import CLASSIFIER_SETTINGS, records_of, table

from hrp.files import write_text
from hrp.report.table import Table
from hrp_lab.report.markdown import write_page
from hrp_lab.report.summary import classifiers_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README_MARKS = "<!-- results:begin -->", "<!-- results:end -->"

# Page -> (its title, what it answers).
KEPT = {
    "kept-gsm8k-450": ("GSM8K, 450 steps", "every way to charge preheating, DoRA, LoRA-Squeeze"),
    "kept-gsm8k-930": ("GSM8K, 930 steps", "the same, twice as long"),
    "kept-gsm8k-1860": ("GSM8K, 1860 steps", "four times as long, with forgetting"),
    "kept-gsm8k-forgetting": ("GSM8K, what is forgotten", "and exact answers, at best rates"),
    "kept-gsm8k-variants": ("GSM8K, variants", "rsLoRA, LoRA+, random directions"),
    "kept-gsm8k-r8": ("GSM8K, rank 8", "450 steps"),
    "kept-gsm8k-r16": ("GSM8K, rank 16", "450 steps"),
    "kept-gsm8k-r32": ("GSM8K, rank 32", "450 steps"),
    "kept-gsm8k-tries": ("GSM8K, what else was tried", "warm-up, rate, length, statistics"),
    "kept-function-names": ("Function names", "the standard library's docstrings"),
    "kept-wordproblems": ("Word problems", "the demo's task"),
    "kept-cola": ("CoLA, by seed", "warm-up, the head kept or dropped"),
    "kept-sst2": ("SST-2, by seed", "warm-up, the head kept or dropped"),
}
EARLIER = {
    "standin-gsm8k-450": ("Every start on GSM8K, 450 steps", "starts, variants, oracles"),
    "standin-gsm8k-930": ("Every start on GSM8K, 930 steps", "the same, twice as long"),
    "standin-gsm8k-compute": ("GSM8K at equal FLOPs, 450 steps", "R and K, random directions"),
    "standin-gsm8k-compute-930": ("GSM8K at equal FLOPs, 930 steps", "R and K"),
    "standin-ablation": ("Ablation on GSM8K", "R, K and direction"),
    "standin-cola": ("Every start on CoLA", "preheating too hot"),
    "standin-sst2": ("Every start on SST-2", "preheating too hot"),
    "standin-cola-preheating-rate": ("CoLA, preheating's rate", "four rates, three directions"),
    "standin-glue-rule": ("CoLA and SST-2 at the default rate", "R and K"),
    "standin-cola-default": ("CoLA, preheating's length", "a sixth or a twentieth of the steps"),
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
    """Write a page for each experiment, the two readings, and docs/ablation.md, with figures."""
    figures = DOCS / "figures"
    for name, (title, _) in (KEPT | EARLIER).items():
        text = TRACE if name in KEPT else f"{SUPERSEDED}\n\n{TRACE}"
        if name in ("kept-cola", "kept-sst2"):
            text += f"\n\n## Scores by seed\n\n{table('seeds', name).markdown()}"
        if name == "kept-gsm8k-forgetting":
            text += f"\n\n## Forgetting and exact answers\n\n{table('exact').markdown()}"
        out = DOCS / "results" / f"{name}.md"
        write_page(
            records_of([name]), out, title, reading=text, figures_folder=figures, drawn=name in KEPT
        )
        print(out, flush=True)
    write_page(
        records_of(["ablation-rule-wordproblems", "ablation-wordproblems"]), DOCS / "ablation.md",
        "Ablation: R and K on word problems", reading=_reading("ablation"), figures_folder=figures,
    )  # fmt: skip
    texts = [DOCS / "ablation.md", *(DOCS / "results").glob("*.md"), DOCS / "theory.md"]
    used = set(re.findall(r"figures/([^)]+\.png)", "".join(p.read_text("utf-8") for p in texts)))
    for path in figures.glob("*.png"):
        if path.name not in used and not path.name.startswith("theory-"):
            path.unlink()  # drawn for an earlier form of these pages


def _reading(name: str) -> str:
    return (ROOT / "experiments" / f"reading-{name}.md").read_text(encoding="utf-8")


def readings() -> dict[str, str]:
    """Return the pages that a person wrote: what follows from the records, new and earlier."""
    listed = "".join(
        f"- [{title}]({name}.md): {about}\n" for name, (title, about) in EARLIER.items()
    )
    return {
        "reading": f"# What the records say\n\n{_reading('kept').replace('<!-- more -->', '')}",
        "reading-earlier": f"# What the earlier records say\n\n{SUPERSEDED}\n\n"
        f"{_reading('results').rstrip()}\n\n## The experiments\n\n{listed}"
        "- [Ablation: R and K on word problems](../ablation.md)\n",
    }


def main_page() -> str:
    """Return the text of docs/results.md."""
    reading = "[the reading](results/reading.md)"
    links = "; ".join(f"[{title}](results/{name}.md)" for name, (title, _) in KEPT.items())
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
        "## CoLA and SST-2, MiniLM, five seeds\n",
        classifiers().markdown(),
        "## Every experiment\n",
        f"{links}. [Earlier ones](results/reading-earlier.md), HRP cut by the plain SVD.",
        "What HRP [costs](costs.md); how to [make such tables](benchmark.md).",
    ]
    return "\n".join(parts).rstrip() + "\n"


def classifiers() -> Table:
    """Return the table of both classifiers, at the rates and warm-ups that tell most."""
    by_task = {"CoLA": records_of(["kept-cola"]), "SST-2": records_of(["kept-sst2"])}
    whole = classifiers_table(by_task, CLASSIFIER_SETTINGS)
    rows = [row for row in whole.rows if row[2] in ("0", "0.3") and row[1:3] != ("0.001", "0.3")]
    return Table(whole.caption, whole.header, (whole.rows[0], *rows))


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
