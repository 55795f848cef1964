"""One job from a clip to a folder of results: checked, queued, run, judged, written."""
