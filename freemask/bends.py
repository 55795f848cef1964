"""How an edit's attention is bent, as people write it: "up 2.0@161: car scale 2" (`methods.bend` does it)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .errors import SettingError
from .presets import Timestep
from .validation import STRICT, validated

__all__ = ["Bend", "read_bend"]

FORM = re.compile(
    r"\s*(?P<site>[^@#:]+?)\s*(?:@\s*(?P<timestep>\d{1,4})\s*)?(?:#\s*(?P<head>\d{1,3})\s*)?:\s*(?P<word>.+?)\s+"
    r"(?P<how>scale|blur|shift)\s+(?P<amount>-?\d+(?:\.\d+)?)\s*"
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bend:
    """At the layer `site`, at one `timestep` or all, in one `head` (from 1) or all, the maps of the edit prompt's
    `word` are `scale`d by an amount (0 mutes them), `blur`red by a Gaussian of so many cells, or `shift`ed to the right
    by a share of the width."""

    site: Annotated[str, Field(min_length=1, max_length=100)]
    word: Annotated[str, Field(min_length=1, max_length=100)]
    how: Literal["scale", "blur", "shift"]
    amount: Annotated[float, Field(ge=-10, le=10)]
    timestep: Timestep | None = None
    head: Annotated[int, Field(ge=1, le=128)] | None = None


def read_bend(text: str) -> Bend:
    """From `LAYER [@TIMESTEP] [#HEAD]: WORD scale|blur|shift AMOUNT`, such as "up 2.0@161: car scale 2"; raises
    SettingError for anything else."""
    found = FORM.fullmatch(text)
    if not found:
        raise SettingError(
            f"bend is {text[:80]!r}: write LAYER@TIMESTEP#HEAD: WORD scale|blur|shift AMOUNT, such as "
            "'up 2.0@161: car scale 2', where @TIMESTEP and #HEAD may be left out."
        )
    told = found.groupdict()
    numbers = {name: int(told[name]) for name in ("timestep", "head") if told[name]}
    values = {name: told[name] for name in ("site", "word", "how")} | numbers | {"amount": float(told["amount"])}
    bend: Bend = validated(Bend, values, "bend: ")
    if bend.how == "blur" and bend.amount < 0 or bend.how == "shift" and abs(bend.amount) > 1:
        raise SettingError("bend: a blur is 0 cells or more, a shift a share of the width, from -1 to 1.")
    return bend
