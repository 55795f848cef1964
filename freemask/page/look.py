"""How the page looks beyond `static/style.css`: its colours and fonts, its title, the pictures on the task cards."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import gradio as gr

from ..presets import task_names
from ..settings import Example

__all__ = ["cards", "header", "theme"]

TITLE = """<header class="fm-head"><h1>FreeMask</h1>
<p>Edit a video by text, and see the attention masks that made the edit.</p></header>"""


def theme() -> gr.themes.Base:
    """Quiet greys, one violet, system fonts: nothing is fetched from elsewhere."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_lg,
        font=fonts,
        font_mono=mono,
    ).set(
        body_background_fill="#f6f6f4",
        body_background_fill_dark="#111216",
        block_background_fill="#ffffff",
        block_background_fill_dark="#191b21",
        body_text_color_subdued="#63636b",
        body_text_color_subdued_dark="#a3a6b1",
        input_placeholder_color="#8b8b93",
        input_placeholder_color_dark="#767a86",
        block_border_color="#e6e5e1",
        block_border_color_dark="#2a2d36",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_title_text_weight="600",
        input_background_fill="#fbfbfa",
        input_background_fill_dark="#14161b",
        border_color_primary="#e6e5e1",
        border_color_primary_dark="#2a2d36",
        button_primary_background_fill="#4c3a9e",
        button_primary_background_fill_hover="#3d2e86",
        button_primary_background_fill_dark="#6d59cf",
        button_primary_background_fill_hover_dark="#5f4bc0",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#22252d",
        button_secondary_border_color="#d9d8d3",
        button_secondary_border_color_dark="#363a45",
        button_border_width="1px",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_border_color="#dedcd6",
        checkbox_label_border_color_dark="#363a45",
        checkbox_label_border_width="1px",
        checkbox_label_border_width_dark="1px",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        block_shadow="0 1px 2px rgb(20 20 30 / 4%)",
        block_shadow_dark="none",
    )


def cards(shipped: Sequence[Example]) -> str:
    """CSS that puts the pictures of the shipped edits, before and after, on the examples' buttons and the tasks' cards,
    a task having that of its first example."""
    rules, tasks = [], list(task_names())
    for i, example in enumerate(shipped):
        if not (path := example.picture).exists():
            continue
        places = [f"#examples .gallery-item:nth-of-type({i + 1})::before"]
        if example.settings.task in tasks and example.settings.task not in [one.settings.task for one in shipped[:i]]:
            places.append(f"#task label:nth-of-type({tasks.index(example.settings.task) + 1})::before")
        data = base64.b64encode(path.read_bytes()).decode()
        rules.append(f'{", ".join(places)} {{ content: ""; background-image: url(data:image/jpeg;base64,{data}) }}')
    return "\n".join(rules)


def header() -> None:
    gr.HTML(TITLE)
