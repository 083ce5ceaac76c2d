"""Does a chain pay? A study of many short runs: a data set, a family of models, recipes, seeds.

    python -m benchmarks.family prepare --work W digits         shards, once
    python -m benchmarks.family list --work W ...               which runs: W/runs.jsonl
    python -m benchmarks.family run --work W --jobs 2           trains them; one JSON file a run
    python -m benchmarks.family report ...                      tables and plots, from these files alone

Every run is a ModelChain that `modelchain run` trains, a model alone being a chain of one stage. What is compared
with what, and on which data, is fixed in docs/method.md ("How chain and alone are compared"). The files:
datasets.py, families.py, recipes.py and chain.py say what is trained, runs.py and listing.py which runs there are,
execute.py trains them, results.py keeps what came out, comparison.py and report.py say what it means.
"""
