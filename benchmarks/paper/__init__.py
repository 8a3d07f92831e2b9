"""Reproduction studies: `python -m benchmarks.paper` lists them, `python -m benchmarks.paper STUDY` runs one.

A study is a module of this package with

    def run(out: Path, quick: bool) -> None             writes results.csv, verdict.json and PNG figures into `out`
    def verdict(rows: list[Row]) -> dict[str, Any]      what results.csv says, from its rows alone

and a docstring whose first line says what it asks. `quick` is a version of seconds, for the tests. The results that
were kept lie in docs/reproduction/STUDY, with a page beside them.
"""
