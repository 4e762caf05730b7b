"""The page of an advice: one HTML file that asks nothing of the network."""

from importlib.resources import files
from typing import Any

import cellaug
from cellaug import figures
from cellaug.figures import study as charts
from cellaug.study import answers

import pandas as pd
from jinja2 import Environment


def render(document: dict[str, Any], results: answers.Results | None) -> str:
    """The page of `cellaug.study.advise.advise`, with figures where the study was made."""
    template = files("cellaug.study").joinpath("advice.html").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["points"] = answers.points
    drawn = {} if results is None else draw(results, document)
    counts = pd.DataFrame(document["set"]["classes"]).T
    page = environment.from_string(template)
    return page.render(advice=document, figures=drawn, counts=counts, version=cellaug.__version__)


def draw(results: answers.Results, document: dict[str, Any]) -> dict[str, str]:
    """The figures of the page, as the sources of images."""
    figures.use_style()
    table = answers.summary(answers.scores(results)).loc["all"].reset_index()
    rows = table.rename(columns={"arm": "name", "mean": "value"})
    found = {"arms": figures.interval_plot(rows, "macro F1 on test images")}
    pairs = results.contrasts
    own = pairs[(pairs["class"] != "") & (pairs["arm"] == document["best_with"])]
    own = own[own["against"] == document["best_without"]].assign(scarcity="")
    if len(own):
        found["classes"] = charts.change_by_class(own)
    real = results.runs.drop_duplicates("run").groupby("scarcity")["real_images"].first()
    curve = answers.summary(answers.scores(results)).reset_index()
    curve = curve[curve.groupby("arm")["scarcity"].transform("nunique") > 1]
    curve = curve.assign(family="", number=curve["scarcity"].map(real))
    found["curve"] = charts.score_curves(curve, "real training images")
    return {name: f"data:image/png;base64,{figure.as_png()[0]}" for name, figure in found.items()}
