"""Gradio's server on a port that is its own."""

import socket

import gradio as gr

import app


def free_port() -> int:
    """A port that the system gives to nobody else. Servers that count upwards from Gradio's 7860 find the same one
    where two start at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(demo: gr.Blocks) -> str:
    """Serves the page beside the caller and returns its address."""
    return str(demo.launch(**app.LAUNCH, server_port=free_port(), prevent_thread_lock=True, quiet=True)[1])
