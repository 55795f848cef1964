# For self-hosting. On a GPU: docker run --gpus all -p 7860:7860 -e FREEMASK_BACKBONE=zeroscope freemask
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends ffmpeg && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 app && install --directory --owner app /home/app/freemask
USER app
WORKDIR /home/app/freemask
ENV PATH=/home/app/.local/bin:$PATH GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
COPY --chown=app requirements.txt .
RUN pip install --no-cache-dir --user -r requirements.txt
COPY --chown=app . .
EXPOSE 7860
HEALTHCHECK --interval=30s --start-period=60s CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"
CMD ["python", "app.py"]
