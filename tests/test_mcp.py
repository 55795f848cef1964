"""The page as a tool of agents."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from serving import launch
from tiny import write_disc

import app
from freemask import page
from freemask.jobs.worker import Worker
from freemask.page.fields import NAMES

mcp = pytest.importorskip("mcp", reason='agents need pip install "gradio[mcp]"')
from mcp.client.streamable_http import streamablehttp_client  # noqa: E402


def test_an_agent_edits_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_MCP_SERVER", "True")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    clip = base64.b64encode(write_disc(tmp_path / "disc.mp4").read_bytes()).decode()
    given = {
        "clip": f"data:video/mp4;base64,{clip}",
        "source": "a red car driving on the grass",
        "edit": "a blue car driving on the grass",
        "steps": 2,
    }

    async def talk(url: str) -> None:
        async with (
            streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, *_),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            (tool,) = (await session.list_tools()).tools
            fields = tool.inputSchema["properties"]
            assert tool.name == "edit" and list(fields) == NAMES
            assert not {"task", "guidance"} & {*tool.inputSchema["required"]}
            assert all(field["type"] and field["description"][-1] in '."' for field in fields.values())
            told = await session.call_tool("edit", given)
            text = " ".join(block.text for block in told.content if block.type == "text")
            assert not told.isError and "Done in" in text and "edited.mp4" in text and "masks.png" in text
            assert "'task': 'attribute'" in text and "'guidance': 3.0" in text
            refused = await session.call_tool("edit", given | {"word": "boat"})
            assert refused.isError and "boat" in refused.content[0].text

    with Worker() as worker:
        demo = app.build(worker, body=lambda *args: page.painted_circles(*args, pause=lambda: None))
        url = launch(demo)
        asyncio.run(talk(url))
        demo.close()
