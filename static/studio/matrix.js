// The maps of the chosen words by layer and timestep.

const GAP = 2, PAD = 2; // CSS pixels between the cells of the matrix, where outlines run, and around all of them
const MARGIN = 14; // left and right of all cells, so that the outer timesteps are whole
const SMALLEST = 14, LARGEST = 40, PHONE = 52; // a cell's width on a wide page, and on a phone
const CHEAP = 30; // ms: a matrix slower than this waits for the pause

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
  let pitch, image, current, pointed, shown, drawn, slow = 0, stale = false;

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
    const area = Math.round(100 * found.area[state.frame]);
    const iou = found.iou ? `, IoU with the mask in use ${found.iou[state.frame].toFixed(2)}` : "";
    return `${place(at)}: area ${area} %${iou}${mark}`;
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
      const [values, top] = store.raw(at, state.frame, map);
      paint(values, top, sites[at[0]], pixels, start(r * pitch.y) * image.width + start(c * pitch.x), image.width);
    }));
    context.putImageData(image, 0, 0);
    context.setTransform(dots, 0, 0, dots, PAD * dots, PAD * dots);
    context.lineWidth = 1.5;
    context.strokeStyle = maskColour(canvas);
    lines.forEach((row, r) => row.forEach(([s, k], c) => {
      if (chosen[k][s]) context.strokeRect(c * pitch.x + 0.75, r * pitch.y + 0.75, pitch.x - 1.5, pitch.high - 1.5);
    }));
    slow = performance.now() - began;
    drawn = store.latent(state.frame);
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
      if (what === "frame" && store.latent(state.frame) === drawn) stale = false; // it has the maps of the one before
      else if (what === "frame" && state.playing && slow >= CHEAP) stale = true;
      else if (turned || ["size", "words", "frame", "look"].includes(what) || (what === "pause" && stale)) draw();
      mark();
      tell(what);
    },
  };
}
