// One cell in full, and a mask by hand.

/** The selected cell over the source frame, its mask and figures, and what can be done with it. */
function inspector(value, state, store, act, clips) {
  const { sites, timesteps, frames, size } = value, { used } = store;
  const title = el("h2"), note = el("p", { className: "fm-note" });
  const scale = el("i"), scaleTop = el("span"), scaleText = el("span");
  const scaleLine = el("p", { className: "fm-scale" }, "0", scale, scaleTop, scaleText);
  const canvas = el("canvas", { role: "img", style: `aspect-ratio: ${size[0]} / ${size[1]}; max-width: ${(520 * size[0]) / size[1]}px` });
  const context = canvas.getContext("2d");
  const still = el("canvas", { width: size[0], height: size[1] }); // the last source frame: while the clip seeks it has none
  const [area, iou, flicker, maximum] = Array.from({ length: 4 }, () => el("dd"));
  let maps, found, seen = false; // all frames of the selected cell, and its mask with its figures
  let full = []; // the frames where the mask that an edit takes covers everything

  const set = (what, name, read = (chosen) => chosen) => (chosen) => act.set(what, { [name]: read(chosen) });
  const tau = slider("Threshold τ", { min: 0.05, max: 0.95, step: 0.01, value: state.tau, show: (n) => n.toFixed(2) }, set("tau", "tau"));
  const opacity = slider("Opacity", { min: 0, max: 1, step: 0.05, value: state.opacity, show: percent }, set("overlay", "opacity"));
  const colours = choice("Colours", Object.keys(COLOURS).map((name) => [name, name]), set("look", "colours"));
  const view = choice("View", VIEWS, (name) => act.set("look", { view: name, smooth: name !== "native" }));
  view.select.title = "Strongest word: each place in the colour of the word that it attends to most. Heads, features (the first principal components of the keys) and a place's attention are computed when they are chosen";
  const deep = layerView(value, state, store, act, { coloured, changed });
  const key = el("p", { className: "fm-scale fm-key" });
  const shared = choice("Divided by", [["cell", "this cell"], ["all", "all cells"]], set("look", "shared", (name) => name === "all"));
  const own = () => found && { ...sites[state.cell[0]], bits: found.masks };
  const brush = painter(value, state, used, canvas, { mask: own, draw, use: act.paint });
  const paint = button("Paint", "Paint a mask by hand. Without a pointer: an uploaded zip of numbered PNG masks does the same", () => {
    clips.pause();
    paint.ariaPressed = brush.toggle();
    draw();
    write();
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
    if (state.view === "strongest") return strongest(h, w);
    if (deep.draw(canvas, context, layer)) return;
    layer(coloured(maps[state.frame], h, w, seen ? state.opacity : 1), 1, state.smooth);
    if (!state.smooth) hairlines(h, w);
    if (state.used) stroke(outline(part(used), used.h, used.w, width, height), "#fff");
    if (!found) return;
    const mask = part(own()), colour = maskColour(canvas);
    if (state.fill) layer(tinted(mask, h, w, colour), 0.45, false);
    stroke(outline(mask, h, w, width, height), colour);
  }

  const edited = () => !value.word.length || [value.word, ...value.changes].some((word) => word.join() === state.words.join());
  /** What an edit with this cell would take: the mask that is shown, of the edited word by its cell, else as a painting. */
  function judge() {
    full = [...(found?.area ?? []).keys()].filter((f) => found.area[f] === 1);
    state.usable = !!found && full.length < frames;
    state.painted = edited() && !deep.partial() ? null : () => ({ h: own().h, w: own().w, data: pack(found.masks) });
  }

  /** What the cell's maps are now, and all that follows from them. */
  function changed() {
    maps = deep.maps() ?? store.maps(state.cell);
    found = store.measure(state.cell, maps);
    judge();
    const track = deep.track();
    act.track(track && ((frame) => track[store.latent(frame)]));
    draw();
    write();
  }

  const part = ({ h, w, bits }) => bits.subarray(state.frame * h * w, (state.frame + 1) * h * w);
  function layer(picture, alpha, smooth) {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = smooth;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  }
  /** A map as a picture. Where it is low the frame shows through, the less so the more opaque; at 1 nowhere. */
  function coloured(map, h, w, opaque, top = state.shared ? store.top() : largest(map)) {
    const picture = el("canvas", { width: w, height: h }), image = new ImageData(w, h), pixels = new Uint32Array(image.data.buffer);
    const table = palette(state.colours), unit = 255 / (top || 1);
    map.forEach((p, i) => {
      const level = Math.min(255, Math.round(p * unit));
      pixels[i] = table[level];
      image.data[4 * i + 3] = opaque && 255 * Math.sqrt(opaque) * (level / 255) ** (1 / opaque - 1);
    });
    picture.getContext("2d").putImageData(image, 0, 0);
    return picture;
  }
  /** Each place in the colour of the word that it attends to most, of the source prompt's and others; the key names them. */
  function strongest(h, w) {
    const compared = [...value.words.keys()].filter((at) => store.has(at) && (at < value.source_words || value.words[at].concept));
    const best = new Float32Array(h * w), who = new Int16Array(h * w).fill(-1), map = new Float32Array(h * w);
    for (const at of compared) {
      store.read(state.cell, state.frame, map, [at]);
      for (let i = 0; i < map.length; i++) if (map[i] > best[i]) [best[i], who[i]] = [map[i], at];
    }
    const wins = compared.map((at, n) => ({ at, hue: HUES[n % HUES.length], share: who.filter((one) => one === at).length / who.length }));
    const told = wins.filter(({ share }) => share).sort((a, b) => b.share - a.share);
    for (const { at, hue } of told) layer(tinted(who.map((one) => one === at), h, w, hue), state.opacity, false);
    key.replaceChildren(...told.map(({ at, hue, share }) => el("span", {}, el("b", { style: `background: ${hue}` }), `${value.words[at].name} ${percent(share)}`)));
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
    const alike = store.alike(state.frame);
    const now = `frame ${state.frame + 1} of ${frames}${alike.length > 1 ? `, one map for ${framesTold(alike)}` : ""}`;
    title.replaceChildren(`${words} at ${short}, timestep ${timesteps[k]}`, el("small", {}, `${w} × ${h}, ${now}`));
    canvas.ariaLabel = `The map of ${words} over ${now} of the source`;
    area.textContent = found ? percent(found.area[state.frame]) : "none";
    iou.textContent = found?.iou ? `${found.iou[state.frame].toFixed(2)}, mean ${found.mean.toFixed(2)}` : "none";
    flicker.textContent = found && frames > 1 ? percent(found.flicker) : "none";
    maximum.textContent = several ? `${top.toFixed(2)} of 1` : top.toPrecision(3);
    scale.style.background = `linear-gradient(90deg, ${COLOURS[state.colours].split(" ").map((hex) => `#${hex}`)})`;
    scaleTop.textContent = (state.shared ? store.top() : top).toPrecision(3);
    scaleLine.hidden = ["strongest", "features", "place"].includes(state.view) && !brush.active();
    key.hidden = state.view !== "strongest" || brush.active();
    const by = state.shared ? "the largest value on any cell" : "this frame's own maximum";
    scaleText.textContent = several ? `each word ÷ its maximum on this cell, the larger counts; then ÷ ${by}` : `probability ÷ ${by}`;
    const whose = state.words.some((at) => value.words[at].concept) ? `A word of no prompt: the source's own queries, asked for it beside the prompt's words.${state.words.some((at) => value.words[at].unseen) ? " This backbone was never taught it, so its maps mean nothing." : ""}`
      : state.words.some((at) => at >= value.source_words) ? "Maps of new words are what the edit itself attended to, before any fusion." : "";
    const bad = !state.usable && !full.length ? "This cell's map is flat or zero on some frame: no mask can be cut from it. Choose another cell."
      : !state.usable ? "This cell's mask covers the whole picture, so it holds the edit to nothing: raise τ, or choose another cell."
      : full.length ? `This cell's mask covers the whole picture on ${framesTold(full)}.` : "";
    note.textContent = brush.active() ? "" : [whose, edited() ? "" : `An edit with this cell takes the mask of ${words} as if it were painted.`, bad].filter(Boolean).join(" ");
    note.classList.toggle("bad", !state.usable);
    use.hidden = !state.usable;
    useRow.hidden = !edited() || deep.partial();
    bendRow.hidden = !bendable() || brush.active();
  }

  canvas.addEventListener("click", (event) => {
    if (state.view !== "place" || brush.active()) return;
    clips.pause();
    deep.pick(event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight);
  });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (state.view !== "place" || brush.active() || !by) return;
    event.preventDefault();
    deep.move(...by);
  });
  for (const event of ["seeked", "loadeddata"]) clips.source.addEventListener(event, () => maps && draw());
  const figures = [["Area", area], ["IoU, mask in use", iou], ["Flicker", flicker], ["Maximum", maximum]];
  const use = button("Edit with this cell", "Edit again with this cell's mask (Enter in the matrix)", () => act.use(false), "fm-button primary");
  const fill = check("fill the mask", set("overlay", "fill")), outlined = check("outline the mask in use", set("overlay", "used"));
  const useRow = button("Edit with this row", "Edit again with this layer: every timestep its own mask", () => act.use(true));
  const ways = [["scale 2", "twice as strong"], ["scale 4", "four times"], ["scale 0", "muted"], ["blur 2", "blurred"], ["shift 0.25", "moved right"], ["shift -0.25", "moved left"]];
  const way = choice("Bend this word's attention", ways, () => {});
  const where = choice("in", [["cell", "this cell"], ["row", "this layer"]], () => {});
  const bend = button("Edit bent", "Edit again with this word's attention changed there, all else as it was; Compare shows the two", () => {
    const [s, k] = state.cell, word = bendable(), cell = where.select.value === "cell" ? `@${timesteps[k]}` : "";
    act.bend(`${sites[s].short}${cell}${deep.head() ? `#${deep.head()}` : ""}: ${word} ${way.select.value}`);
  });
  const bendRow = el("div", { className: "fm-bend" }, way.node, where.node, bend);
  /** The shown word's name in the edit prompt, where it stands there once. */
  function bendable() {
    const same = state.words.length === 1 ? value.edit_words.filter(({ at }) => at === state.words[0]) : [];
    return same.length === 1 && value.edit_words.filter(({ text }) => text === same[0].text).length === 1 ? same[0].text : null;
  }

  return {
    node: el("section", { className: "fm-panel fm-inspector", ariaLabel: "Inspector" }, title,
      el("div", { className: "fm-view" }, canvas, scaleLine, key, deep.node),
      el("div", { className: "fm-controls" }, tau.node, opacity.node,
        el("div", { className: "fm-choices" }, colours.node, view.node, shared.node), el("div", { className: "fm-checks" }, fill, outlined),
        el("dl", {}, ...figures.map(([name, node]) => el("div", {}, el("dt", {}, name), node))),
        el("div", { className: "fm-actions" }, use, useRow, paint), note, bendRow, brush.node)),
    update(what) {
      if (what === "size") {
        canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
        canvas.height = Math.round((canvas.width * size[1]) / size[0]);
      }
      if (!state.width || !state.words.length) return;
      if (!maps || ["words", "cell"].includes(what)) maps = store.maps(state.cell);
      if (["words", "cell", "look"].includes(what)) canvas.tabIndex = state.view === "place" ? 0 : -1;
      deep.update(what);
      if (["size", "words", "cell", "tau", "look"].includes(what)) changed();
      else draw(), write();
    },
  };
}

/** A brush on the inspector's canvas. It paints on every frame, unless on this one only. */
function painter(value, state, used, canvas, host) {
  const half = Math.max(...value.size) > 512 ? 2 : 1;
  const [w, h] = value.size.map((side) => Math.round(side / half)), area = w * h;
  const every = [...Array(value.frames).keys()], history = [];
  const most = within(4, 30, Math.floor(2 ** 27 / (every.length * area))); // steps that can be taken back
  let bits = null, on = false, add = true, only = false, radius = Math.max(1, Math.round(w / 24)), last = null, spot = null;
  const frame = (f) => bits.subarray(f * area, (f + 1) * area);

  const painted = () => (only ? [state.frame] : every);

  function keep(list) {
    history.push(list.map((f) => [f, frame(f).slice()]));
    if (history.length > most) history.shift();
  }
  /** What was painted is shown, and where there is none. */
  function show() {
    const none = every.filter((f) => !frame(f).includes(1));
    line.textContent = !none.length ? "" : none.length === every.length ? "Nothing is painted yet: there is no mask to edit with." : `Without a mask: ${framesTold(none)}.`;
    use.disabled = none.length === every.length;
    host.draw();
  }
  function begin(from) {
    const old = (from === "cell" && host.mask()) || used, side = old.h * old.w;
    if (bits) keep(every);
    else bits = new Uint8Array(every.length * area);
    for (const f of every) frame(f).set(resized(old.bits.subarray(f * side, (f + 1) * side), old.h, old.w, h, w));
    if (from === "none") bits.fill(0);
    show();
  }
  function undo() {
    for (const [f, copy] of history.pop() ?? []) frame(f).set(copy);
    show();
  }
  function spread() {
    keep(every);
    for (const f of every) frame(f).set(frame(state.frame).slice());
    show();
  }
  function clear() {
    keep(painted());
    for (const f of painted()) frame(f).fill(0);
    show();
  }
  function disc(cx, cy, now) {
    for (let y = Math.max(0, Math.ceil(cy - radius)); y <= Math.min(h - 1, cy + radius); y++)
      for (let x = Math.max(0, Math.ceil(cx - radius)); x <= Math.min(w - 1, cx + radius); x++)
        if ((x - cx) ** 2 + (y - cy) ** 2 <= radius ** 2) now[y * w + x] = add ? 1 : 0;
  }
  function stroke([x, y]) {
    const [x0, y0] = last ?? [x, y], steps = Math.ceil(Math.hypot(x - x0, y - y0) / Math.max(1, radius / 3)) || 1;
    for (const f of painted())
      for (let i = 0; i <= steps; i++) disc(x0 + ((x - x0) * i) / steps, y0 + ((y - y0) * i) / steps, frame(f));
    last = [x, y];
  }
  const point = (event) => [(event.offsetX / canvas.clientWidth) * w - 0.5, (event.offsetY / canvas.clientHeight) * h - 0.5];

  canvas.onpointerdown = (event) => {
    if (!on || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    keep(painted());
    last = null;
    stroke((spot = point(event)));
    show();
  };
  canvas.onpointermove = (event) => {
    if (!on) return;
    spot = point(event);
    if (canvas.hasPointerCapture(event.pointerId)) stroke(spot);
    host.draw();
  };
  canvas.onpointerup = () => on && show();
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
  const single = check("This frame only", (chosen) => (only = chosen));
  single.title = "Else what is painted, erased or cleared is so on every frame";
  const line = el("p", { className: "fm-note", role: "status" });
  const toAll = button("This frame → all frames", "Every frame gets the mask of this frame", spread);
  const node = el("div", { className: "fm-paint", hidden: true }, start.node, size.node, ...(every.length > 1 ? [single] : []),
    el("div", { className: "fm-actions" }, ...modes, button("Undo", "Take the last step back", undo), button("Clear", "Take the mask away", clear)),
    line, el("div", { className: "fm-actions" }, use, ...(every.length > 1 ? [toAll] : [])));

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
