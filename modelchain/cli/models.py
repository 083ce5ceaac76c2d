"""`modelchain models`: the models that a stage can refer to by name."""

from __future__ import annotations

import argparse
import json

SUMMARY = "list the models that a stage can name, with their size and cost"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("models", help=SUMMARY, description=SUMMARY.capitalize() + ".")
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="how to print them"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the catalogue."""
    from modelchain import catalogue, cost
    from modelchain.cli.table import Column, count, render
    from modelchain.families import family_of
    from modelchain.families.clip import text_macs, vision_macs

    models = {name: catalogue.find(name) for name in catalogue.names()}
    if arguments.output == "json":
        listing = [
            {
                "name": name,
                "parameters": cost.parameters(model),
                "visionMacs": vision_macs(model),
                "textMacs": text_macs(model),
                "grows": family_of(model).grows,
                "modelConfig": model.model_dump(mode="json", by_alias=True),
            }
            for name, model in models.items()
        ]
        print(json.dumps(listing, indent=2))
        return 0
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
    rows = [
        (
            name,
            f"{model.vision.image_size}/{model.vision.patch_size}",
            f"{model.vision.width} x {model.vision.layers}",
            f"{model.text.width} x {model.text.layers}",
            str(model.embed_dim),
            count(cost.parameters(model)),
            count(vision_macs(model)),
            count(text_macs(model)),
            "yes" if family_of(model).grows else "taught only",
        )
        for name, model in models.items()
    ]
    print(render(columns, rows))
    return 0
