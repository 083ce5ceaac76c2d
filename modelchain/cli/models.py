"""`modelchain models`: the models that a stage can refer to by name."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelchain.families import ModelConfig, OpenClipConfig

SUMMARY = "list the models that a stage can name, with their size and cost"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("models", help=SUMMARY, description=SUMMARY.capitalize() + ".")
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="how to print them"
    )
    parser.add_argument(
        "--task",
        choices=("Clip", "Classification", "LanguageModel"),
        default="Clip",
        help="of which task: Clip (default) lists the names for model, Classification timm's for timmConfig.name; "
        "models of LanguageModel have none and are written out",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the catalogue of the task."""
    catalogues = {"Clip": _image_text, "Classification": _classifiers, "LanguageModel": _language_models}
    print(catalogues[arguments.task](arguments.output))
    return 0


def _language_models(output: str) -> str:
    """There is no list: any width, depth and vocabulary can be written."""
    from modelchain.tasks import LANGUAGE_MODEL

    if output == "json":
        return "[]"
    field = LANGUAGE_MODEL.families[0].field
    return (
        f"Models of task LanguageModel have no names: write them out under {field}, for example\n"
        f"  {field}: {{contextLength: 1024, vocabularySize: 50304, width: 768, layers: 12, heads: 12}}"
    )


def _image_text(output: str) -> str:
    from modelchain import catalogue, cost
    from modelchain.cli.table import Column, count, render
    from modelchain.families import family_of
    from modelchain.families.family import LockedTower

    models = {name: catalogue.find_any(name) for name in catalogue.names()}
    macs = {
        name: {tower: family_of(model).of_tower(model, tower, 1)[1] for tower in LockedTower}
        for name, model in models.items()
    }
    if output == "json":
        listing = [
            {
                "name": name,
                "unavailable": None,
                "parameters": cost.parameters(model),
                "visionMacs": macs[name][LockedTower.IMAGE],
                "textMacs": macs[name][LockedTower.TEXT],
                "grows": family_of(model).grows,
                family_of(model).field: model.model_dump(mode="json", by_alias=True),
            }
            for name, model in models.items()
        ]
        others = [
            {"name": name, "unavailable": reason}
            for reason, names in catalogue.unavailable().items()
            for name in names
        ]
        return json.dumps([*listing, *others], indent=2)
    columns = (
        Column("MODEL"),
        Column("IMAGE", right=True),
        Column("VISION"),
        Column("TEXT"),
        Column("EMBEDDING", right=True),
        Column("PARAMETERS", right=True),
        Column("MACS/IMAGE", right=True),
        Column("MACS/CAPTION", right=True),
        Column("GROWS"),
    )
    tables: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}  # that grow, and that do not
    for name, model in models.items():
        grows = family_of(model).grows
        tables[grows].append(
            (
                name,
                *_image_tower(model),
                f"{model.text.width} x {model.text.layers}",
                str(model.embed_dim),
                count(cost.parameters(model)),
                count(macs[name][LockedTower.IMAGE]),
                count(macs[name][LockedTower.TEXT]),
                "yes" if grows else "taught only",
            )
        )
    return "\n\n".join([*(render(columns, rows) for rows in tables.values()), _unavailable()])


def _unavailable() -> str:
    """The other models of open_clip, by the reason."""
    from modelchain import catalogue

    others = catalogue.unavailable()
    lines = [f"{sum(map(len, others.values()))} of open_clip's can't be stages:"]
    for reason, names in others.items():
        listed = ", ".join(name.removeprefix(catalogue.OPEN_CLIP_PREFIX) for name in names)
        lines += textwrap.wrap(
            f"{reason}: {listed}",
            width=110,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _image_tower(model: ModelConfig | OpenClipConfig) -> tuple[str, str]:
    """Its image, and what it is."""
    from modelchain.families import ModelConfig

    vision = model.vision
    if isinstance(model, ModelConfig):
        return (
            f"{vision.image_size}/{model.vision.patch_size}",
            f"{model.vision.width} x {model.vision.layers}",
        )
    return str(vision.image_size), model.vision.name


def _classifiers(output: str) -> str:
    """timm's models without their heads, on images of 224 pixels."""
    from modelchain.cli.table import Column, count, render
    from modelchain.families import TIMM
    from modelchain.families.timm_adapter import timm_models

    side = 224
    if output == "json":
        listing = [
            {
                "name": name,
                "features": model.features,
                "parameters": model.parameters,
                "macs": model.macs(side),
                "batchNorm": model.batch_norm,
                "grows": TIMM.grows,
            }
            for name, model in timm_models().items()
        ]
        return json.dumps(listing, indent=2)
    columns = (
        Column("MODEL"),
        Column("FEATURES", right=True),
        Column("PARAMETERS", right=True),
        Column(f"MACS/IMAGE OF {side}", right=True),
        Column("BATCHNORM"),
        Column("GROWS"),
    )
    rows = [
        (
            name,
            str(model.features),
            count(model.parameters),
            count(model.macs(side)),
            "yes" if model.batch_norm else "no",
            "yes" if TIMM.grows else "taught only",
        )
        for name, model in timm_models().items()
    ]
    return render(columns, rows)
