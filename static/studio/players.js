// The three clips and the prompts' words.

/** The three clips on one clock, the transport below, and the wipe. */
function players(value, state, act, signal) {
  const { frames, fps, size, videos, drawn } = value;
  const titles = { source: "Source", ...(drawn ? {} : { reconstruction: "Reconstruction" }), edited: "Edit" };
  const figures = Object.entries(titles).map(([key, title]) => {
    const video = el("video", { muted: true, loop: true, playsInline: true, preload: "auto" });
    if (videos[key]) video.src = videos[key].url;
    const caption = el("figcaption", {}, videos[key] ? title : `${title}: on its way`);
    video.onclick = () => toggle();
    video.onerror = () => caption.append(" (could not be loaded)");
    return el("figure", { className: `fm-${key}` }, video, caption);
  });
  const clips = figures.map((figure) => figure.firstChild), [lead, ...others] = clips;
  const there = () => clips.filter((clip) => clip.src);
  const divider = el("input", { type: "range", className: "fm-divider", min: 0, max: 100, step: 0.5, value: 50 });
  divider.ariaLabel = "Divider between source and edit";
  const stage = el("div", { className: "fm-players", style: `--ratio: ${size[0] / size[1]}; --share: 0.5` }, ...figures, divider);
  divider.oninput = () => stage.style.setProperty("--share", divider.value / 100);
  const startStop = icon("play", "Play (Space)", () => toggle());
  const position = slider("Frame", { min: 1, max: frames, step: 1, value: 1, show: (n) => `${n} / ${frames}` }, (n) => go(n - 1));
  const wipe = button("Wipe", "One large view: the edit over the source, with a divider to drag", () => {
    wipe.ariaPressed = stage.classList.toggle("fm-wipe");
  });
  wipe.ariaPressed = false;
  let beat = 0;

  function seek() {
    for (const clip of there()) if (clip.readyState) clip.currentTime = (state.frame + 0.5) / fps;
  }
  function go(frame) {
    pause();
    act.set("frame", { frame });
    seek();
  }
  const step = (by) => go((state.frame + by + frames) % frames);
  function pause() {
    if (!state.playing || signal.aborted) return;
    stop(beat);
    for (const clip of clips) clip.pause();
    act.set("pause", { playing: false });
    seek();
  }
  function play() {
    state.playing = true;
    startStop.set("pause", "Pause (Space)");
    Promise.all(there().map((clip) => clip.play())).then(() => tick(lead.currentTime), (error) => error.name !== "AbortError" && pause());
  }
  const toggle = () => (state.playing ? pause() : play());

  // The picture that the first clip shows is the clock: at the loop its currentTime is a picture ahead.
  const exact = "requestVideoFrameCallback" in lead;
  const next = () => (exact ? lead.requestVideoFrameCallback((_, { mediaTime }) => tick(mediaTime)) : requestAnimationFrame(() => tick(lead.currentTime)));
  const stop = (id) => (exact ? lead.cancelVideoFrameCallback(id) : cancelAnimationFrame(id));
  function tick(time) {
    stop(beat);
    if (!state.playing || signal.aborted) return;
    beat = next();
    for (const clip of others.filter((clip) => clip.src)) {
      const drift = Math.abs(clip.currentTime - lead.currentTime);
      if (!clip.seeking && Math.min(drift, Math.abs(lead.duration - drift)) > 0.5 / fps) clip.currentTime = lead.currentTime;
    }
    const frame = Math.min(frames - 1, Math.floor(time * fps + 0.01));
    if (frame !== state.frame) act.set("frame", { frame });
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input[type=text]")) return;
    if (event.key === " " && !event.target.matches("button, input:not([type=range])")) toggle();
    else if (event.key === ",") step(-1);
    else if (event.key === ".") step(1);
    else return;
    event.preventDefault();
  }

  // Where a place of the first frame is in each: a ring on every player.
  const spots = figures.map((figure) => figure.insertBefore(el("i", { className: "fm-spot", hidden: true }), figure.lastChild));
  let places = null;
  function ring() {
    const [x, y] = places?.(state.frame) ?? [];
    for (const spot of spots) {
      spot.hidden = x === undefined;
      if (!spot.hidden) spot.style.cssText = `--x: ${x}; --y: ${y}`;
    }
  }

  function close() {
    for (const clip of clips) {
      clip.onerror = null;
      clip.removeAttribute("src"); // frees what was decoded
      clip.load();
    }
  }

  /** The reconstruction has come: whether that is all that is new. */
  function complete(newer) {
    if (drawn) return true; // there is none to come
    const late = clips[1];
    if (late.src || !newer.reconstruction) return false;
    late.onloadeddata = () => (state.playing ? late.play().catch(() => {}) : seek());
    late.src = newer.reconstruction.url;
    figures[1].lastChild.textContent = "Reconstruction";
    return true;
  }

  if (frames > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  const back = icon("back", "Previous frame (,)", () => step(-1)), on = icon("on", "Next frame (.)", () => step(1));
  const transport = el("div", { className: "fm-transport" }, ...(frames > 1 ? [startStop, back, on, position.node] : []), wipe);
  return {
    node: el("section", { className: "fm-panel", ariaLabel: "Players" }, stage, transport),
    source: lead, keys, pause, close, complete,
    track(at) {
      places = at;
      ring();
    },
    update(what) {
      if (what === "frame") position.set(state.frame + 1), ring();
      if (what === "pause") startStop.set("play", "Play (Space)");
    },
  };
}

/** Both prompts as chips. A word that the edit prompt shares with the source stands for the source's. */
function wordRows(value, state, act) {
  const chips = [], line = el("p", { className: "fm-note", role: "status" });
  const several = check("several words", (on) => {
    if (!on && state.words.length > 1) act.words(state.words.slice(0, 1));
  });
  several.title = "A click adds a word or takes it away, as Ctrl-click and the + key do";
  const chip = ({ text, at }) => {
    const { concept } = value.words[at], own = at >= value.source_words && !concept;
    const title = own ? "New in the edit prompt: its maps are the edit's own" : concept ? "In no prompt: read by the source's own queries" : "";
    const node = button(text, title, (event) => pick(at, several.firstChild.checked || event.ctrlKey || event.metaKey || event.shiftKey), "fm-chip");
    node.onkeydown = (event) => {
      if (event.key === "+") pick(at, true);
    };
    node.classList.toggle("word", value.word.includes(at));
    node.classList.toggle("new", own);
    chips.push([node, at]);
    return node;
  };
  const pick = (word, add) => {
    const rest = add ? state.words.filter((other) => other !== word) : [];
    const next = add && rest.length < state.words.length ? rest : [...rest, word]; // adding a chosen word takes it away
    act.words(next.length ? next.sort((a, b) => a - b) : [word]);
  };
  const row = (title, words) =>
    el("div", { className: "fm-words", role: "group", ariaLabel: words.length ? `${title} prompt` : "Other words" }, el("span", {}, title), ...words.map(chip));
  const wanted = el("input", { type: "text", maxLength: 100, placeholder: "another word", ariaLabel: "Another word, which need not stand in the prompts" });
  const look = button("Look", "Read this word's maps over the clip, beside the source prompt's words");
  look.type = "submit";
  const ask = el("form", { className: "fm-ask" }, wanted, look);
  ask.onsubmit = (event) => {
    event.preventDefault();
    if (wanted.value.trim()) act.seek(wanted.value.trim().replace(/\s+/g, " "));
  };
  const others = row("Other", []);
  others.append(ask);
  return {
    node: el("section", { className: "fm-panel", ariaLabel: "Words" },
      row("Source", value.words.slice(0, value.source_words).map(({ text }, at) => ({ text, at }))), row("Edit", value.edit_words), others,
      el("div", { className: "fm-hint" }, line, several)),
    add(word) {
      ask.before(chip(word));
      wanted.value = "";
    },
    say: (text) => (line.textContent = text),
    update(what) {
      if (what === "words") for (const [node, at] of chips) node.ariaPressed = state.words.includes(at);
    },
  };
}
