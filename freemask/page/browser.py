"""What the page does in the browser alone: functions in JavaScript that Gradio's events call."""

import json
from collections.abc import Sequence

from ..families import specs
from .advanced import PACES, first_pace

__all__ = [
    "ARRIVE",
    "FOLLOW_PACE",
    "FREE",
    "HEAD",
    "HOLD",
    "LET_GO",
    "PROGRESS",
    "QUERY",
    "REVEAL",
    "TAKE_PACE",
    "fetch",
    "own_pace",
    "usual_guidance",
]

# The script runs before Gradio's own, which then takes its `fetch`.
HEAD = f"<script>{{\n{(specs.ROOT / 'static' / 'fetch.js').read_text(encoding='utf-8')}}}</script>"

_PACES = json.dumps({name: [pace["steps"], pace["solver"]] for name, pace in PACES.items()})
# The steps and the solver of a pace, and the pace that has these, if any: here, where no answer can come late.
TAKE_PACE = f"(name) => ({_PACES})[name]"
FOLLOW_PACE = f"""(steps, solver, shown) => {{
    const paces = {_PACES};
    const fits = (name) => paces[name][0] === Number(steps) && paces[name][1] === solver;
    const pace = Object.keys(paces).find(fits) ?? null;
    return pace === shown ? {{ __type__: "update" }} : pace;
}}"""


def own_pace() -> str:
    """The steps and the solver for an own clip, where those that stand there are `lent` by an example: its edit was
    made with them, and what suits this server suits another clip."""
    skip = '{ __type__: "update" }'
    return f"(lent) => lent ? {json.dumps(list(PACES[first_pace()].values()))} : [{skip}, {skip}]"


def usual_guidance(offered: Sequence[str]) -> str:
    """The guidance that suits a backbone of those offered."""
    return f"(name) => ({json.dumps({name: specs.usual_guidance(name) for name in offered})})[name]"


# A tab keeps a token, so that after a reload it finds its job and its results.
ARRIVE = """() => {
    const made = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0"));
    let token = window.freemask;
    try { token ??= sessionStorage.getItem("freemask"); } catch { /* a frame that may store nothing */ }
    token ??= made().join("");
    window.freemask = token;
    try { sessionStorage.setItem("freemask", token); } catch { /* likewise */ }
    return token;
}"""
# The page's query, and last whether it is light, by which what is drawn for it is coloured.
QUERY = """() => `${location.search}&__theme=${document.body.classList.contains("dark") ? "dark" : "light"}`"""
# Until the fields are as this visitor is to find them nothing can be written into them, where it would be lost. Where
# that fails no event follows, so after a while they are free all the same.
FREE = """() => {
    const columns = document.querySelector("#columns");
    columns.inert = false;
    columns.dataset.ready = "1";
}"""
HOLD = f"document.querySelector('#columns').inert = true; setTimeout({FREE}, 10000)"
# A chosen word that the source prompt no longer holds gives way to the one that is inferred, unless it is being typed.
LET_GO = """(source, word) => {
    const held = source.toLowerCase().includes(word.split("#")[0].trim().toLowerCase());
    return held || document.activeElement?.closest("#word") ? { __type__: "update" } : "";
}"""
# A result that comes is brought into view once, as soon as it can be seen, but not under the hands of who types.
REVEAL = """() => {
    const status = document.querySelector("#status"), { top } = status.getBoundingClientRect();
    if (status.dataset.revealed) return;
    status.dataset.revealed = 1;
    const typing = document.activeElement?.matches("textarea, input:not([type=range], [type=radio], [type=checkbox])");
    if (typing || (top >= 0 && top < innerHeight / 2)) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    status.scrollIntoView({ behavior: still ? "auto" : "smooth" });
}"""
# Beside Edit the status in a line, which may be out of sight itself.
PROGRESS = f"""(told) => {{
    const card = new DOMParser().parseFromString(told, "text/html").querySelector(".fm-status");
    const title = card?.querySelector("strong").innerHTML, status = document.querySelector("#status");
    if (!card || card.dataset.state === "idle" || title.startsWith("Made beforehand")) return "";
    const shown = "shown" in card.dataset, seen = shown || ["done", "failed"].includes(card.dataset.state);
    if (shown) ({REVEAL})();
    if (!seen) delete status.dataset.revealed;
    const detail = card.dataset.state === "running" && !seen ? " · " + card.querySelector("p").innerHTML : "";
    const there = seen ? ' <a href="#status">See it</a>' : "";
    return `<p class="fm-note">${{title}}${{detail}}${{there}}</p>`;
}}"""


def fetch(name: str) -> str:
    """Downloads a file as soon as the list of downloads holds it."""
    return f"""() => {{
        const until = Date.now() + 5000;
        const look = () => {{
            const link = document.querySelector({json.dumps(f"#files a[download='{name}']")});
            if (link) link.click();
            else if (Date.now() < until) setTimeout(look, 50);
        }};
        look();
    }}"""
