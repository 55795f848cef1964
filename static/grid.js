// The studio: the three clips in step, and an explorer of the word maps that a mask is made of.
// Python appends the call `studio(element, props, trigger, watch)` and hands this text to gr.HTML as its js_on_load.
// A cell is [s, k]: the indexes of a site and of a timestep. Parts hear of a change by its name: see `session`.

const COLOURS = {
  viridis: "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
  cividis: "00224e 1a386f 434e6c 61656f 7d7c78 9b9476 bcae6c dec958 fee838",
  magma: "000004 1d1147 51127c 832681 b73779 e75263 fc8961 fec488 fcfdbf",
  grey: "000000 ffffff",
};
const ICONS = { play: "M4 2.5v11l9.5-5.5z", pause: "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z", back: "M10.5 3v10L4 8z", on: "M5.5 3v10L12 8z" };
const UNIT = Float32Array.from({ length: 256 }, (_, i) => i / 255);
const GAP = 2, PAD = 2; // CSS pixels between the cells of the matrix, where outlines run, and around all of them
const MARGIN = 14; // left and right of all cells, so that the outer timesteps are whole
const SMALLEST = 14, LARGEST = 40, PHONE = 52; // a cell's width on a wide page, and on a phone
const FETCHED = 12; // words whose maps are fetched before they are asked for
const CHEAP = 30; // ms: a matrix slower than this waits for the pause
const HINT = "Click a word to see its maps. Outlined: the edited word.";

function studio(element, props, trigger, watch) {
  let close = () => {};
  const open = () => {
    close();
    for (const key of ["ready", "cell", "frame", "words"]) delete element.dataset[key];
    const root = element.querySelector(".fm-studio") ?? element.appendChild(el("div", { className: "fm-studio" }));
    // the page's value is a reactive proxy, slow to read in loops: a plain copy
    close = props.value ? session(element, root, JSON.parse(JSON.stringify(props.value)), trigger) : empty(root);
  };
  watch("value", open);
  open();
}

function empty(root) {
  delete root.dataset.size;
  root.replaceChildren(el("div", { className: "fm-quiet" }, "The players and the attention explorer appear here after an edit."));
  return () => {};
}

/** One edit on the page: what is chosen, the parts that show it, and their end.
 *
 * Changes: size, words, cell, frame, tau, look (how maps are drawn), overlay (what lies over the picture), pause.
 */
function session(element, root, value, trigger) {
  const { sites, timesteps } = value;
  const life = new AbortController();
  const state = {
    frame: 0, playing: false, words: [], cell: [sites.findIndex(({ name }) => name === value.cell.site), timesteps.indexOf(value.cell.timestep)], tau: value.tau,
    colours: "viridis", smooth: true, shared: false, opacity: 0.65, fill: false, used: false,
  };
  const store = mapStore(value, state, life.signal);
  const act = {
    set(what, fields) {
      Object.assign(state, fields);
      for (const part of parts) part.update(what);
      publish();
    },
    words: choose,
    use(row) {
      const [s, k] = state.cell;
      trigger("use", { site: sites[s].name, timestep: row ? null : timesteps[k], tau: state.tau });
    },
    paint: (data) => trigger("paint", data),
  };
  const clips = players(value, state, act, life.signal);
  const chips = wordRows(value, state, act);
  const parts = [clips, chips, matrix(value, state, store, act), inspector(value, state, store, act, clips)];
  root.replaceChildren(...parts.map((part) => part.node));
  root.tabIndex = -1; // a click anywhere in the studio gives it the keys
  root.addEventListener("keydown", clips.keys, { signal: life.signal });

  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || width === state.width) return; // hidden, or only the height changed
    root.dataset.size = width < 700 ? "narrow" : width < 1080 ? "middle" : "wide";
    act.set("size", { width, narrow: width < 700 });
  });
  observer.observe(root);
  choose(value.word.length ? value.word : [0]).then(prefetch);

  async function choose(words) {
    state.wanted = words;
    chips.say(words.every(store.has) ? HINT : `Loading the maps of ${quoted(words, value)}…`);
    const problem = await Promise.all(words.map(store.load)).then(() => null, (error) => error);
    if (life.signal.aborted || state.wanted !== words) return; // another word was chosen meanwhile
    chips.say(problem ? `The maps of ${quoted(words, value)} could not be loaded. Click the word to try again.` : HINT);
    if (!problem) act.set("words", { words });
  }

  async function prefetch() {
    for (const word of value.words.slice(0, FETCHED).keys()) {
      await new Promise((go) => (window.requestIdleCallback ? requestIdleCallback(go) : setTimeout(go, 200)));
      if (life.signal.aborted || !(await store.load(word).then(() => true, () => false))) return;
    }
  }

  /** What is drawn, for who waits on it. */
  function publish() {
    if (!state.words.length || !state.width) return;
    const [s, k] = state.cell, words = state.words.map((i) => value.words[i].text).join(",");
    Object.assign(element.dataset, { cell: `${sites[s].name}@${timesteps[k]}`, frame: state.frame + 1, words, ready: "1" });
  }

  return () => {
    life.abort();
    observer.disconnect();
    clips.close();
    root.replaceChildren();
  };
}

// ---- Maps -----------------------------------------------------------------------------------------------------------

/** The words' maps, fetched once each, and the mask in use. `state.words` are those that are read. */
function mapStore({ words, sites, timesteps, frames, mask }, state, signal) {
  const steps = timesteps.length, used = { ...mask, bits: unpack(mask.data, frames * mask.h * mask.w) };
  const offsets = [];
  let total = 0;
  for (const { h, w } of sites) {
    offsets.push(total);
    total += steps * frames * h * w;
  }
  const size = total + 4 * sites.length * steps * frames;
  const pending = new Map(), ready = new Map();

  async function fetched(word) {
    const response = await fetch(words[word].maps.url, { signal });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const buffer = await inflate(await response.arrayBuffer(), size);
    if (buffer.byteLength !== size) throw new Error("The maps have another size than their sites");
    const values = new Uint8Array(buffer, 0, total), scales = new Float32Array(buffer.slice(total));
    const tops = new Float32Array(scales.length); // the largest probability of each (site, timestep, frame)
    for (let s = 0, row = 0, at = 0; s < sites.length; s++)
      for (let end = row + steps * frames, area = sites[s].h * sites[s].w; row < end; row++, at += area)
        tops[row] = UNIT[largest(values.subarray(at, at + area))] * scales[row];
    ready.set(word, { values, scales, tops, top: largest(tops) });
  }

  function load(word) {
    if (!pending.has(word)) pending.set(word, fetched(word).catch((error) => { pending.delete(word); throw error; }));
    return pending.get(word);
  }

  /** One frame into `out`. Several words: each divided by its maximum over the cell's frames, then the larger counts. */
  function read([s, k], frame, out) {
    const area = sites[s].h * sites[s].w, first = (s * steps + k) * frames, at = offsets[s] + (k * frames + frame) * area;
    out.fill(0, 0, area);
    for (const word of state.words) {
      const { values, scales, tops } = ready.get(word);
      const scale = scales[first + frame] / (state.words.length > 1 ? largest(tops.subarray(first, first + frames)) || 1 : 1);
      for (let i = 0; i < area; i++) {
        const p = UNIT[values[at + i]] * scale;
        if (p > out[i]) out[i] = p;
      }
    }
  }

  /** Every frame of a cell. */
  function maps(at) {
    const all = Array.from({ length: frames }, () => new Float32Array(sites[at[0]].h * sites[at[0]].w));
    all.forEach((map, frame) => read(at, frame, map));
    return all;
  }

  return {
    used, read, load, maps,
    has: (word) => ready.has(word),
    measure: (at, of = maps(at)) => measure(of, sites[at[0]], used, state.tau),
    /** The largest value on any cell. */
    top: () => (state.words.length > 1 ? 1 : ready.get(state.words[0]).top),
  };
}

async function inflate(buffer, size) {
  const [a, b] = new Uint8Array(buffer, 0, 2);
  if (a !== 0x1f || b !== 0x8b || buffer.byteLength === size) return buffer; // the server's encoding was undone already
  return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/** 3×3 maximum filter. */
function pool(map, h, w) {
  const rows = new Float32Array(map.length), out = new Float32Array(map.length);
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++) rows[i] = Math.max(map[i], x ? map[i - 1] : 0, x < w - 1 ? map[i + 1] : 0);
  for (let i = 0; i < map.length; i++) out[i] = Math.max(rows[i], i >= w ? rows[i - w] : 0, i + w < map.length ? rows[i + w] : 0);
  return out;
}

/** The cell's mask at its own grid, as `extract` in freemask/masks.py cuts it, or null where a frame is flat. */
function extract(maps, h, w, tau) {
  const masks = new Uint8Array(maps.length * h * w);
  const strict = Math.fround(tau);
  for (const [frame, map] of maps.entries()) {
    const pooled = pool(map, h, w);
    const top = largest(pooled);
    if (!(top > 0) || (map.length > 1 && map.every((p) => p === map[0]))) return null;
    for (let i = 0; i < map.length; i++) masks[frame * h * w + i] = Math.fround(pooled[i] / top) > strict;
  }
  return masks;
}

/** A cell's mask and its figures, by frame; IoU on the grid of the mask in use. */
function measure(maps, { h, w }, used, tau) {
  const masks = extract(maps, h, w, tau);
  if (!masks) return null;
  const area = [], iou = [];
  let flips = 0;
  for (const frame of maps.keys()) {
    const mask = masks.subarray(frame * h * w, (frame + 1) * h * w);
    area.push(mask.reduce((sum, on) => sum + on, 0) / mask.length);
    const grown = resized(mask, h, w, used.h, used.w);
    const at = frame * grown.length;
    let both = 0, either = 0;
    for (let i = 0; i < grown.length; i++) {
      both += grown[i] & used.bits[at + i];
      either += grown[i] | used.bits[at + i];
    }
    iou.push(either ? both / either : 1);
    if (frame) for (let i = 0; i < mask.length; i++) flips += mask[i] ^ masks[(frame - 1) * h * w + i];
  }
  const flicker = maps.length > 1 ? flips / (maps.length - 1) / (h * w) : null;
  return { masks, area, iou, flicker, mean: iou.reduce((a, b) => a + b) / iou.length };
}

/** Nearest: whole factors repeat. */
function resized(mask, h, w, toH, toW) {
  if (h === toH && w === toW) return mask;
  const out = new Uint8Array(toH * toW);
  for (let y = 0, i = 0; y < toH; y++) {
    const row = Math.floor(((y + 0.5) * h) / toH) * w;
    for (let x = 0; x < toW; x++, i++) out[i] = mask[row + Math.floor(((x + 0.5) * w) / toW)];
  }
  return out;
}

function largest(map) {
  let top = 0;
  for (let i = 0; i < map.length; i++) if (map[i] > top) top = map[i];
  return top;
}

/** numpy.unpackbits and packbits, over base64. */
function unpack(text, length) {
  const bytes = atob(text), bits = new Uint8Array(length);
  for (let i = 0; i < length; i++) bits[i] = (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  return bits;
}

function pack(bits) {
  const bytes = new Uint8Array((bits.length + 7) >> 3);
  for (let i = 0; i < bits.length; i++) bytes[i >> 3] |= bits[i] << (7 - (i & 7));
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

// ---- Drawing --------------------------------------------------------------------------------------------------------

/** 256 pixels, little-endian RGBA. */
function palette(name) {
  const stops = COLOURS[name].split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    const [r, g, b] = stops[low].map((c, n) => Math.round(c + (stops[low + 1][n] - c) * (at - low)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}

/** Weights that take one side of a map from `from` to `to` samples: the mean where it shrinks, else linear or nearest. */
function taps(from, to, smooth) {
  const scale = from / to, reach = Math.max(1, scale), linear = scale > 1 || smooth;
  const count = linear ? Math.ceil(2 * reach) + 1 : 1;
  const index = new Int32Array(to * count), weight = new Float32Array(to * count);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale - 0.5, first = linear ? Math.ceil(centre - reach) : Math.round(centre);
    let sum = 0;
    for (let n = 0; n < count; n++) {
      index[i * count + n] = Math.min(from - 1, Math.max(0, first + n));
      sum += weight[i * count + n] = linear ? Math.max(0, 1 - Math.abs(first + n - centre) / reach) : 1;
    }
    for (let n = 0; n < count; n++) weight[i * count + n] /= sum;
  }
  return { count, index, weight };
}

/** Draws maps as wide × high pixels, each divided by its own maximum, at an index of an image of some stride. */
function shrinker(wide, high, tallest, colours, smooth) {
  const rows = new Float32Array(tallest * wide), fits = new Map();
  const fit = (from, to) => fits.get(`${from} ${to}`) ?? fits.set(`${from} ${to}`, taps(from, to, smooth)).get(`${from} ${to}`);
  return (map, { h, w }, pixels, at, stride) => {
    const across = fit(w, wide), down = fit(h, high), unit = 255 / (largest(map.subarray(0, h * w)) || 1);
    for (let y = 0; y < h; y++)
      for (let x = 0; x < wide; x++) {
        let sum = 0;
        for (let n = x * across.count, end = n + across.count; n < end; n++) sum += map[y * w + across.index[n]] * across.weight[n];
        rows[y * wide + x] = sum * unit;
      }
    for (let y = 0; y < high; y++, at += stride)
      for (let x = 0; x < wide; x++) {
        let sum = 0;
        for (let n = y * down.count, end = n + down.count; n < end; n++) sum += rows[down.index[n] * wide + x] * down.weight[n];
        pixels[at + x] = colours[Math.min(255, Math.round(sum))];
      }
  };
}

/** A mask as a small canvas of one colour, to be drawn at any size. */
function tinted(mask, h, w, colour) {
  const canvas = el("canvas", { width: w, height: h }), context = canvas.getContext("2d");
  const image = new ImageData(w, h);
  for (let i = 0; i < h * w; i++) image.data[4 * i + 3] = mask[i] ? 255 : 0;
  context.putImageData(image, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, w, h);
  return canvas;
}

/** The border between on and off cells, on a canvas of width × height. */
function outline(mask, h, w, width, height) {
  const path = new Path2D(), dx = width / w, dy = height / h;
  const on = (y, x) => y >= 0 && y < h && x >= 0 && x < w && mask[y * w + x] > 0;
  for (let y = 0; y <= h; y++)
    for (let x = 0; x <= w; x++) {
      if (on(y, x) !== on(y - 1, x)) path.moveTo(x * dx, y * dy), path.lineTo((x + 1) * dx, y * dy);
      if (on(y, x) !== on(y, x - 1)) path.moveTo(x * dx, y * dy), path.lineTo(x * dx, (y + 1) * dy);
    }
  return path;
}

function maskColour(node) {
  return getComputedStyle(node).getPropertyValue("--fm-mask").trim() || "#e4572e";
}

// ---- Page parts -----------------------------------------------------------------------------------------------------

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function button(text, title, onclick, className = "fm-button") {
  return el("button", { type: "button", className, title, onclick }, text);
}

function icon(name, title, onclick) {
  const node = el("button", { type: "button", className: "fm-button fm-icon", onclick });
  const set = (name, title) => {
    node.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
    node.title = title;
    node.setAttribute("aria-label", title);
  };
  set(name, title);
  return Object.assign(node, { set });
}

function slider(text, { min, max, step, value, show }, oninput) {
  const input = el("input", { type: "range", min, max, step, ariaLabel: text }), output = el("output");
  const set = (number) => {
    input.value = number;
    input.ariaValueText = output.textContent = show(number);
  };
  input.oninput = () => {
    set(+input.value);
    oninput(+input.value);
  };
  set(value);
  return { node: el("label", { className: "fm-slider" }, el("span", {}, text), input, output), set };
}

function choice(text, options, oninput) {
  const select = el("select", { ariaLabel: text }, ...options.map(([value, label]) => el("option", { value }, label)));
  select.onchange = () => oninput(select.value);
  return { node: el("label", { className: "fm-choice" }, el("span", {}, text), select), select };
}

function check(text, oninput) {
  const input = el("input", { type: "checkbox", onchange: () => oninput(input.checked) });
  return el("label", { className: "fm-check" }, input, text);
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const quoted = (indexes, { words }) => indexes.map((i) => `“${words[i].text}”`).join(" + ");
const within = (low, high, number) => Math.min(high, Math.max(low, number));

/** The three clips on one clock, the transport below, and the wipe. */
function players(value, state, act, signal) {
  const { frames, fps, size, videos } = value;
  const figures = [["source", "Source"], ["reconstruction", "Reconstruction"], ["edited", "Edit"]].map(([key, title]) => {
    const video = el("video", { src: videos[key].url, muted: true, loop: true, playsInline: true, preload: "auto", ariaLabel: title });
    const caption = el("figcaption", {}, title);
    video.onclick = () => toggle();
    video.onerror = () => caption.append(" (could not be loaded)");
    return el("figure", { className: `fm-${key}` }, video, caption);
  });
  const clips = figures.map((figure) => figure.firstChild), [lead, ...others] = clips;
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
  let beat;

  function seek() {
    for (const clip of clips) if (clip.readyState) clip.currentTime = (state.frame + 0.5) / fps;
  }
  function go(frame) {
    pause();
    act.set("frame", { frame });
    seek();
  }
  const step = (by) => go((state.frame + by + frames) % frames);
  function pause() {
    if (!state.playing || signal.aborted) return;
    cancelAnimationFrame(beat);
    for (const clip of clips) clip.pause();
    act.set("pause", { playing: false });
    seek();
  }
  function play() {
    state.playing = true;
    startStop.set("pause", "Pause (Space)");
    Promise.all(clips.map((clip) => clip.play())).then(tick, (error) => error.name !== "AbortError" && pause());
  }
  const toggle = () => (state.playing ? pause() : play());

  /** The first clip is the clock. */
  function tick() {
    cancelAnimationFrame(beat);
    if (!state.playing || signal.aborted) return;
    beat = requestAnimationFrame(tick);
    for (const clip of others) {
      const drift = Math.abs(clip.currentTime - lead.currentTime);
      if (!clip.seeking && Math.min(drift, Math.abs(lead.duration - drift)) > 0.5 / fps) clip.currentTime = lead.currentTime;
    }
    const frame = Math.min(frames - 1, Math.floor(lead.currentTime * fps + 0.01));
    if (frame !== state.frame) act.set("frame", { frame });
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    if (event.key === " " && !event.target.matches("button, input:not([type=range])")) toggle();
    else if (event.key === ",") step(-1);
    else if (event.key === ".") step(1);
    else return;
    event.preventDefault();
  }

  function close() {
    for (const clip of clips) {
      clip.onerror = null;
      clip.removeAttribute("src"); // frees what was decoded
      clip.load();
    }
  }

  if (frames > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  const back = icon("back", "Previous frame (,)", () => step(-1)), on = icon("on", "Next frame (.)", () => step(1));
  const transport = el("div", { className: "fm-transport" }, startStop, back, on, position.node, wipe);
  return {
    node: el("section", { className: "fm-panel", ariaLabel: "Players" }, stage, transport),
    source: lead, keys, pause, close,
    update(what) {
      if (what === "frame") position.set(state.frame + 1);
      if (what === "pause") startStop.set("play", "Play (Space)");
    },
  };
}

/** Both prompts as chips. A word that the edit prompt shares with the source stands for the source's. */
function wordRows(value, state, act) {
  const chips = [], line = el("p", { className: "fm-note", role: "status" });
  const several = check("several words", () => {});
  several.title = "A click adds a word or takes it away, as Ctrl-click and the + key do";
  const chip = ({ text, at }) => {
    const own = at >= value.source_words, title = own ? "New in the edit prompt: its maps are the edit's own" : "";
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
    el("div", { className: "fm-words", role: "group", ariaLabel: `${title} prompt` }, el("span", {}, title), ...words.map(chip));
  return {
    node: el("section", { className: "fm-panel", ariaLabel: "Words" },
      row("Source", value.words.slice(0, value.source_words).map(({ text }, at) => ({ text, at }))), row("Edit", value.edit_words),
      el("div", { className: "fm-hint" }, line, several)),
    say: (text) => (line.textContent = text),
    update(what) {
      if (what === "words") for (const [node, at] of chips) node.ariaPressed = state.words.includes(at);
    },
  };
}

/** A row for each layer and a column for each timestep; on a phone one layer at a time, its cells wrapped. */
function matrix(value, state, store, act) {
  const { sites, timesteps, chosen, size } = value;
  const [lmmc, tmmc] = [value.lmmc, value.tmmc].map((costs) => (costs?.every(Number.isFinite) ? costs : null));
  const order = [...timesteps.keys()].reverse(); // the order of the edit: high noise first
  const canvas = el("canvas"), context = canvas.getContext("2d");
  const head = el("div", { className: "fm-steps", ariaHidden: true });
  const cells = el("div", { className: "fm-cells", role: "grid" });
  const names = el("div", { className: "fm-names", ariaHidden: true },
    el("i", { title: "Mask Matching Cost by timestep: lower is better" }, tmmc ? "TMMC" : ""),
    ...sites.map(({ short, name }) => el("span", { title: name }, short)));
  const costs = el("div", { className: "fm-costs" });
  if (lmmc) costs.append(el("i", { title: "Mask Matching Cost by layer: lower is better" }, "LMMC"), ...sites.map(bar));
  const plot = el("div", { className: "fm-plot" }, names,
    el("div", { className: "fm-scroll" }, el("div", { className: "fm-sheet" }, head, canvas, cells)), costs);
  const line = el("p", { className: "fm-note fm-line" });
  const layer = choice("Layer", sites.map(({ short }, s) => [s, short]), (s) => turn(s - state.cell[0]));
  const layerCost = el("span", { className: "fm-note" });
  const map = new Float32Array(Math.max(...sites.map(({ h, w }) => h * w))), tallest = Math.max(...sites.map(({ h }) => h));

  let lines = [], nodes = []; // the cells by row as they stand on the page, and their elements
  let places = new Map(); // element -> [row, column]
  let pitch, image, current, pointed, shown, slow = 0, stale = false;

  function turn(by) {
    const [s, k] = state.cell;
    act.set("cell", { cell: [(s + by + sites.length) % sites.length, k] });
  }
  function costOf(s) {
    return `LMMC ${lmmc[s].toFixed(2)}${lmmc[s] === Math.min(...lmmc) ? ", the lowest" : ""}`;
  }
  function bar({ short }, s) {
    const low = lmmc[s] === Math.min(...lmmc), share = (100 * lmmc[s]) / Math.max(...lmmc);
    const line = el("b", { style: `width: ${share}%` });
    return el("span", { title: `${short}: ${costOf(s)}`, className: low ? "low" : "" }, line, low ? lmmc[s].toFixed(2) : "");
  }

  function layout() {
    plot.classList.toggle("fm-one", state.narrow);
    const room = plot.clientWidth - names.offsetWidth - costs.offsetWidth - 2 * (PAD + MARGIN);
    const across = state.narrow ? Math.floor(room / PHONE) : order.length, fit = Math.floor(room / across);
    const x = state.narrow ? fit : within(SMALLEST, Math.min(LARGEST, (56 * size[0]) / size[1]), fit);
    const high = Math.max(SMALLEST, Math.round(((x - GAP) * size[1]) / size[0]) + GAP);
    pitch = { x, high, y: high + (state.narrow ? 18 : 0) }; // on a phone the timestep stands below its cell
    shown = state.cell[0];
    pointed = null;
    lines = state.narrow
      ? Array.from({ length: Math.ceil(order.length / across) }, (_, r) => order.slice(r * across, (r + 1) * across))
          .map((row) => row.map((k) => [shown, k]))
      : sites.map((_, s) => order.map((k) => [s, k]));
    places = new Map();
    nodes = lines.map((row, r) => row.map((at, c) => {
      const node = el("div", { role: "gridcell", tabIndex: -1, ariaLabel: place(at) }, state.narrow ? timesteps[at[1]] : "");
      places.set(node, [r, c]);
      return node;
    }));
    cells.replaceChildren(...nodes.map((row) => el("div", { role: "row" }, ...row)));
    const width = across * x + 2 * PAD;
    canvas.style.width = `${width}px`;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round((lines.length * pitch.y + 2 * PAD) * devicePixelRatio);
    image = new ImageData(canvas.width, canvas.height);
    plot.style.setProperty("--x", `${x}px`);
    plot.style.setProperty("--y", `${pitch.y}px`);
    const apart = Math.ceil(30 / x);
    head.innerHTML = (tmmc ? curve(width) : "")
      + order.map((k, c) => (c % apart ? "" : `<b style="left:${PAD + (c + 0.5) * x}px">${timesteps[k]}</b>`)).join("");
    layer.select.value = shown;
    layerCost.textContent = lmmc ? costOf(shown) : "";
  }

  /** TMMC above the columns, its lowest point marked. */
  function curve(width) {
    const low = Math.min(...tmmc), range = Math.max(...tmmc) - low || 1;
    const points = order.map((k, c) => [PAD + (c + 0.5) * pitch.x, 30 - (22 * (tmmc[k] - low)) / range]);
    const [x, y] = points[order.indexOf(tmmc.indexOf(low))];
    return `<svg width="${width}" height="38"><polyline points="${points.join(" ")}"/><circle cx="${x}" cy="${y}" r="4"/></svg>`
      + `<em style="left:${Math.min(x, width - 44)}px">${low.toFixed(2)}</em>`;
  }

  const place = ([s, k]) => `${sites[s].short}, timestep ${timesteps[k]}`;
  function describe(at) {
    const found = store.measure(at), mark = chosen[at[1]][at[0]] ? ", chosen" : "";
    if (!found) return `${place(at)}: flat on some frame, no mask${mark}`;
    const area = Math.round(100 * found.area[state.frame]), iou = found.iou[state.frame].toFixed(2);
    return `${place(at)}: area ${area} %, IoU with the mask in use ${iou}${mark}`;
  }
  /** The cell under the pointer, else the selected one, in a line; a screen reader is not told every frame of a playing clip. */
  function tell(what) {
    const quiet = what === "frame" && state.playing, own = describe(state.cell);
    if (!quiet) current.ariaLabel = own;
    const [s, k] = pointed ?? state.cell, text = pointed ? describe(pointed) : own;
    line.textContent = text + (lmmc ? ` · LMMC ${lmmc[s].toFixed(2)}` : "") + (tmmc ? ` · TMMC ${tmmc[k].toFixed(2)}` : "");
  }
  function mark() {
    const r = state.narrow ? lines.findIndex((row) => row.some(([, k]) => k === state.cell[1])) : state.cell[0];
    const node = nodes[r][lines[r].findIndex(([, k]) => k === state.cell[1])];
    if (current) Object.assign(current, { ariaSelected: null, tabIndex: -1 });
    current = Object.assign(node, { ariaSelected: true, tabIndex: 0 });
  }

  function draw() {
    const began = performance.now(), dots = devicePixelRatio, pixels = new Uint32Array(image.data.buffer);
    const wide = Math.round((pitch.x - GAP) * dots), high = Math.round((pitch.high - GAP) * dots);
    const paint = shrinker(wide, high, tallest, palette(state.colours), state.smooth);
    const start = (n) => Math.round((PAD + GAP / 2 + n) * dots);
    lines.forEach((row, r) => row.forEach((at, c) => {
      store.read(at, state.frame, map);
      paint(map, sites[at[0]], pixels, start(r * pitch.y) * image.width + start(c * pitch.x), image.width);
    }));
    context.putImageData(image, 0, 0);
    context.setTransform(dots, 0, 0, dots, PAD * dots, PAD * dots);
    context.lineWidth = 1.5;
    context.strokeStyle = maskColour(canvas);
    lines.forEach((row, r) => row.forEach(([s, k], c) => {
      if (chosen[k][s]) context.strokeRect(c * pitch.x + 0.75, r * pitch.y + 0.75, pitch.x - 1.5, pitch.high - 1.5);
    }));
    slow = performance.now() - began;
    stale = false;
  }

  function hit(event) {
    const node = event.target.closest("[role=gridcell]");
    return state.words.length && node ? places.get(node) : null;
  }
  function select(row, column) {
    const line = lines[within(0, lines.length - 1, row)];
    act.set("cell", { cell: line[within(0, line.length - 1, column)] });
    current.focus();
  }
  cells.onclick = (event) => {
    const at = hit(event);
    if (at) select(...at);
  };
  cells.onpointerover = (event) => {
    const [r, c] = hit(event) ?? [];
    if (r === undefined) return;
    pointed = lines[r][c];
    tell();
  };
  cells.onpointerleave = () => {
    pointed = null;
    if (state.words.length) tell();
  };
  cells.onkeydown = (event) => {
    const at = hit(event);
    if (!at || event.altKey || event.metaKey) return;
    const [r, c] = at, far = event.ctrlKey;
    const to = {
      ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], PageUp: [r - 4, c], PageDown: [r + 4, c],
      Home: [far ? 0 : r, 0], End: [far ? Infinity : r, Infinity],
    }[event.key];
    if (event.key === "Enter" && !event.repeat) act.use(false);
    if (!to) return;
    event.preventDefault();
    select(...to);
  };

  const reason = el("div", { className: "fm-reason" });
  reason.innerHTML = value.reason;
  const back = icon("back", "Previous layer", () => turn(-1)), on = icon("on", "Next layer", () => turn(1));
  const one = el("div", { className: "fm-layer" }, back, layer.node, on, layerCost);
  const legend = el("p", { className: "fm-note fm-legend" },
    ...(chosen.flat().includes(true) ? [el("i"), "the mask in use is made of these cells. "] : []),
    "Layers run from input to output, timesteps from high noise to low; each cell is divided by its own maximum on the frame."
    + (lmmc || tmmc ? "" : " LMMC and TMMC were not measured: there is no codebook for this backbone."));
  return {
    node: el("section", { className: "fm-panel", ariaLabel: "Attention by layer and timestep" },
      el("h2", {}, "Attention by layer and timestep"), reason, one, plot, line, legend),
    update(what) {
      if (!state.width) return;
      const turned = what === "cell" && state.narrow && shown !== state.cell[0];
      if (what === "size" || turned) layout();
      if (!state.words.length) return;
      if (what === "words") cells.ariaLabel = `Maps of ${quoted(state.words, value)}: a row for each layer, a column for each timestep`;
      if (what === "frame" && state.playing && slow >= CHEAP) stale = true;
      else if (turned || ["size", "words", "frame", "look"].includes(what) || (what === "pause" && stale)) draw();
      mark();
      tell(what);
    },
  };
}

/** The selected cell over the source frame, its mask and figures, and what can be done with it. */
function inspector(value, state, store, act, clips) {
  const { sites, timesteps, frames, size } = value, { used } = store;
  const title = el("h2"), note = el("p", { className: "fm-note" });
  const scale = el("i"), scaleTop = el("span"), scaleText = el("span");
  const canvas = el("canvas", { role: "img", style: `aspect-ratio: ${size[0]} / ${size[1]}; max-width: ${(520 * size[0]) / size[1]}px` });
  const context = canvas.getContext("2d");
  const still = el("canvas", { width: size[0], height: size[1] }); // the last source frame: while the clip seeks it has none
  const [area, iou, flicker, maximum] = Array.from({ length: 4 }, () => el("dd"));
  let maps, found, seen = false; // all frames of the selected cell, and its mask with its figures

  const set = (what, name, read = (chosen) => chosen) => (chosen) => act.set(what, { [name]: read(chosen) });
  const tau = slider("Threshold τ", { min: 0.05, max: 0.95, step: 0.01, value: state.tau, show: (n) => n.toFixed(2) }, set("tau", "tau"));
  const opacity = slider("Opacity", { min: 0, max: 1, step: 0.05, value: state.opacity, show: percent }, set("overlay", "opacity"));
  const colours = choice("Colours", Object.keys(COLOURS).map((name) => [name, name]), set("look", "colours"));
  const view = choice("View", [["smooth", "smooth"], ["native", "native grid"]], set("look", "smooth", (name) => name === "smooth"));
  const shared = choice("Divided by", [["cell", "this cell"], ["all", "all cells"]], set("look", "shared", (name) => name === "all"));
  const own = () => found && { ...sites[state.cell[0]], bits: found.masks };
  const brush = painter(value, state, used, canvas, { mask: own, draw, use: act.paint });
  const paint = button("Paint", "Paint a mask by hand. Without a pointer: an uploaded zip of numbered PNG masks does the same", () => {
    clips.pause();
    paint.ariaPressed = brush.toggle();
    draw();
  });
  paint.ariaPressed = false;

  function draw() {
    const { width, height } = canvas, { h, w } = sites[state.cell[0]];
    if (clips.source.readyState >= 2) {
      still.getContext("2d").drawImage(clips.source, 0, 0, still.width, still.height);
      seen = true;
    }
    context.clearRect(0, 0, width, height);
    if (seen) layer(still, 1, true);
    if (brush.active()) return brush.draw(context, layer);
    layer(coloured(maps[state.frame], h, w), seen ? state.opacity : 1, state.smooth);
    if (!state.smooth) hairlines(h, w);
    if (state.used) stroke(outline(part(used), used.h, used.w, width, height), "#fff");
    if (!found) return;
    const mask = part(own()), colour = maskColour(canvas);
    if (state.fill) layer(tinted(mask, h, w, colour), 0.45, false);
    stroke(outline(mask, h, w, width, height), colour);
  }

  const part = ({ h, w, bits }) => bits.subarray(state.frame * h * w, (state.frame + 1) * h * w);
  function layer(picture, alpha, smooth) {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = smooth;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  }
  function coloured(map, h, w) {
    const picture = el("canvas", { width: w, height: h }), image = new ImageData(w, h), pixels = new Uint32Array(image.data.buffer);
    const table = palette(state.colours), unit = 255 / ((state.shared ? store.top() : largest(map)) || 1);
    map.forEach((p, i) => (pixels[i] = table[Math.min(255, Math.round(p * unit))]));
    picture.getContext("2d").putImageData(image, 0, 0);
    return picture;
  }
  /** A line that shows on any colour: dark below, bright above. */
  function stroke(path, colour) {
    context.lineCap = "round";
    for (const [style, thick] of [["rgb(0 0 0 / 60%)", 4.5], [colour, 2.25]]) {
      context.strokeStyle = style;
      context.lineWidth = thick * devicePixelRatio;
      context.stroke(path);
    }
  }
  function hairlines(h, w) {
    context.fillStyle = "rgb(128 128 128 / 55%)";
    for (let x = 1; x < w; x++) context.fillRect(Math.round((x * canvas.width) / w), 0, 1, canvas.height);
    for (let y = 1; y < h; y++) context.fillRect(0, Math.round((y * canvas.height) / h), canvas.width, 1);
  }

  function write() {
    const [s, k] = state.cell, { short, h, w } = sites[s], several = state.words.length > 1, words = quoted(state.words, value);
    const top = largest(maps[state.frame]);
    const now = `frame ${state.frame + 1} of ${frames}`;
    title.replaceChildren(`${words} at ${short}, timestep ${timesteps[k]}`, el("small", {}, `${w} × ${h}, ${now}`));
    canvas.ariaLabel = `The map of ${words} over ${now} of the source`;
    area.textContent = found ? percent(found.area[state.frame]) : "none";
    iou.textContent = found ? `${found.iou[state.frame].toFixed(2)}, mean ${found.mean.toFixed(2)}` : "none";
    flicker.textContent = found && frames > 1 ? percent(found.flicker) : "none";
    maximum.textContent = several ? `${top.toFixed(2)} of 1` : top.toPrecision(3);
    scale.style.background = `linear-gradient(90deg, ${COLOURS[state.colours].split(" ").map((hex) => `#${hex}`)})`;
    scaleTop.textContent = (state.shared ? store.top() : top).toPrecision(3);
    const by = state.shared ? "the largest value on any cell" : "this frame's own maximum";
    scaleText.textContent = several ? `each word ÷ its maximum on this cell, the larger counts; then ÷ ${by}` : `probability ÷ ${by}`;
    const edited = !value.word.length || state.words.join() === value.word.join();
    const own = state.words.some((at) => at >= value.source_words);
    const whose = own ? "Maps of new words are what the edit itself attended to, before any fusion. " : "";
    note.textContent = whose + (!found ? "This map is flat or zero on some frame: no mask can be cut from it."
      : edited ? "" : `A mask is always made of the maps of ${quoted(value.word, value)}, the edited word.`);
  }

  for (const event of ["seeked", "loadeddata"]) clips.source.addEventListener(event, () => maps && draw());
  const figures = [["Area", area], ["IoU, mask in use", iou], ["Flicker", flicker], ["Maximum", maximum]];
  const use = button("Edit with this cell", "Edit again with this cell's mask (Enter in the matrix)", () => act.use(false), "fm-button primary");
  const fill = check("fill the mask", set("overlay", "fill")), outlined = check("outline the mask in use", set("overlay", "used"));
  const useRow = button("Edit with this row", "Edit again with this layer: every timestep its own mask", () => act.use(true));
  return {
    node: el("section", { className: "fm-panel fm-inspector", ariaLabel: "Inspector" }, title,
      el("div", { className: "fm-view" }, canvas, el("p", { className: "fm-scale" }, "0", scale, scaleTop, scaleText)),
      el("div", { className: "fm-controls" }, tau.node, opacity.node,
        el("div", { className: "fm-choices" }, colours.node, view.node, shared.node), el("div", { className: "fm-checks" }, fill, outlined),
        el("dl", {}, ...figures.map(([name, node]) => el("div", {}, el("dt", {}, name), node))),
        el("div", { className: "fm-actions" }, use, useRow, paint), note, brush.node)),
    update(what) {
      if (what === "size") {
        canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
        canvas.height = Math.round((canvas.width * size[1]) / size[0]);
      }
      if (!state.width || !state.words.length) return;
      if (!maps || ["words", "cell"].includes(what)) maps = store.maps(state.cell);
      if (["size", "words", "cell", "tau"].includes(what)) found = store.measure(state.cell, maps);
      draw();
      write();
    },
  };
}

/** A brush on the inspector's canvas. Frames that are not painted keep the mask they began with. */
function painter(value, state, used, canvas, host) {
  const half = Math.max(...value.size) > 512 ? 2 : 1;
  const [w, h] = value.size.map((side) => Math.round(side / half)), area = w * h;
  const every = [...Array(value.frames).keys()], history = [];
  let bits = null, on = false, add = true, radius = Math.max(1, Math.round(w / 24)), last = null, spot = null;
  const frame = (f) => bits.subarray(f * area, (f + 1) * area);

  function keep(list) {
    history.push(list.map((f) => [f, frame(f).slice()]));
    if (history.length > 30) history.shift();
  }
  function begin(from) {
    const old = (from === "cell" && host.mask()) || used, side = old.h * old.w;
    if (bits) keep(every);
    else bits = new Uint8Array(every.length * area);
    for (const f of every) frame(f).set(resized(old.bits.subarray(f * side, (f + 1) * side), old.h, old.w, h, w));
    if (from === "none") bits.fill(0);
    host.draw();
  }
  function undo() {
    for (const [f, copy] of history.pop() ?? []) frame(f).set(copy);
    host.draw();
  }
  function spread() {
    keep(every);
    for (const f of every) frame(f).set(frame(state.frame).slice());
  }
  function clear() {
    keep([state.frame]);
    frame(state.frame).fill(0);
    host.draw();
  }
  function disc(cx, cy) {
    const now = frame(state.frame);
    for (let y = Math.max(0, Math.ceil(cy - radius)); y <= Math.min(h - 1, cy + radius); y++)
      for (let x = Math.max(0, Math.ceil(cx - radius)); x <= Math.min(w - 1, cx + radius); x++)
        if ((x - cx) ** 2 + (y - cy) ** 2 <= radius ** 2) now[y * w + x] = add ? 1 : 0;
  }
  function stroke([x, y]) {
    const [x0, y0] = last ?? [x, y], steps = Math.ceil(Math.hypot(x - x0, y - y0) / Math.max(1, radius / 3)) || 1;
    for (let i = 0; i <= steps; i++) disc(x0 + ((x - x0) * i) / steps, y0 + ((y - y0) * i) / steps);
    last = [x, y];
  }
  const point = (event) => [(event.offsetX / canvas.clientWidth) * w - 0.5, (event.offsetY / canvas.clientHeight) * h - 0.5];

  canvas.onpointerdown = (event) => {
    if (!on || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    keep([state.frame]);
    last = null;
    stroke((spot = point(event)));
    host.draw();
  };
  canvas.onpointermove = (event) => {
    if (!on) return;
    spot = point(event);
    if (canvas.hasPointerCapture(event.pointerId)) stroke(spot);
    host.draw();
  };
  canvas.onpointerleave = () => {
    spot = null;
    if (on) host.draw();
  };

  const modes = [["Add", true], ["Erase", false]].map(([text, adds]) => {
    const node = button(text, "", () => {
      add = adds;
      for (const mode of modes) mode.ariaPressed = mode === node;
    });
    node.ariaPressed = adds;
    return node;
  });
  const start = choice("Begin with", [["used", "the mask in use"], ["cell", "this cell's mask"], ["none", "nothing"]], begin);
  const size = slider("Brush", { min: 1, max: Math.round(w / 4), step: 1, value: radius, show: (n) => `${2 * n} px` }, (n) => (radius = n));
  const send = () => host.use({ w, h, data: pack(bits) });
  const use = button("Edit with the painting", "Edit again with the painted mask", send, "fm-button primary");
  const node = el("div", { className: "fm-paint", hidden: true }, start.node, size.node,
    el("div", { className: "fm-actions" }, ...modes,
      button("Undo", "Take the last step back", undo), button("Clear", "Empty this frame", clear)),
    el("div", { className: "fm-actions" }, use, button("This frame → all frames", "Every frame gets the mask of this frame", spread)));

  return {
    node,
    active: () => on,
    toggle() {
      on = !on;
      node.hidden = !on;
      canvas.classList.toggle("fm-brush", on);
      if (on && !bits) begin(start.select.value);
      return on;
    },
    /** What is outside is dimmed, so that the mask shows on an object of its own colour too. */
    draw(context, layer) {
      const now = frame(state.frame), scale = canvas.width / w;
      layer(tinted(now, h, w, maskColour(canvas)), 0.5, false);
      layer(tinted(now.map((painted) => 1 - painted), h, w, "#000"), 0.5, false);
      if (!spot) return;
      context.beginPath();
      context.arc((spot[0] + 0.5) * scale, (spot[1] + 0.5) * scale, radius * scale, 0, 2 * Math.PI);
      for (const [style, thick] of [["#000", 3], ["#fff", 1.5]]) {
        context.strokeStyle = style;
        context.lineWidth = thick;
        context.stroke();
      }
    },
  };
}
