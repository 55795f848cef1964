// One cell in full, asked of the server: its heads, its features, and what a place attends to.

const VIEWS = [
  ["smooth", "smooth"], ["native", "native grid"], ["strongest", "strongest word"], ["heads", "heads"], ["features", "features"], ["place", "a place"],
];
const ASKED = ["heads", "features", "place"]; // views that need the server
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** What the inspector shows of the selected cell beyond its map; `host.changed` draws it once it is there. */
function layerView(value, state, store, act, host) {
  const { sites, timesteps } = value, kept = new Map();
  const line = el("p", { className: "fm-note", role: "status" }), tiles = el("div", { className: "fm-heads", role: "group", ariaLabel: "Heads" });
  const toward = choice("Show", [["out", "what it attends to"], ["into", "what attends to it"]], () => host.changed());
  const words = el("p", { className: "fm-note" }), times = el("div", { className: "fm-times" });
  const node = el("div", { className: "fm-layer-view", hidden: true }, line, tiles, toward.node, times, words);
  let wanted = "", found = null, muted = new Set(), place = [0.5, 0.5, 0]; // x, y, latent frame

  function question() {
    const [s, k] = state.cell, cell = { site: sites[s].name, timestep: timesteps[k] };
    if (state.view === "features") return { kind: "features", ...cell };
    if (state.view === "place") return { kind: "position", ...cell, x: place[0], y: place[1], frame: place[2] };
    const [at] = state.words, { concept, text } = value.words[at];
    if (state.words.every((word) => word < value.source_words)) return { kind: "heads", ...cell, words: state.words };
    return concept && state.words.length === 1 ? { kind: "heads", ...cell, text } : null;
  }

  async function look() {
    const asked = ASKED.includes(state.view) && question();
    node.hidden = !ASKED.includes(state.view);
    const key = JSON.stringify(asked);
    if (key === wanted && found) return;
    if (!asked || key !== wanted) [wanted, found] = [key, null];
    if (node.hidden) return;
    line.textContent = asked ? "Looking into the layer…" : "Heads are shown of words of the source prompt, or of one other word.";
    tiles.hidden = toward.node.hidden = times.hidden = words.hidden = true;
    if (!asked) return;
    try {
      if (!kept.has(key)) {
        const told = await act.ask(asked, (how) => key === wanted && (line.textContent = `Looking into the layer: ${how}.`));
        kept.set(key, told);
      }
    } catch (error) {
      if (key === wanted) line.textContent = error.message;
      return;
    }
    if (key !== wanted) return;
    found = read(kept.get(key));
    line.textContent = "";
    ({ heads: showHeads, features: () => {}, place: showPlace })[state.view]();
    host.changed();
  }

  /** The server's arrays as typed ones. */
  function read(told) {
    const maps = ({ values, scales }) => ({ shape: values.shape, values: bytes(values.data), scales: scales.data ? new Float32Array(bytes(scales.data).buffer) : scales });
    if (state.view === "heads") return maps(told);
    if (state.view === "features") return { shape: told.colours.shape, colours: bytes(told.colours.data) };
    return { ...told, out: told.out && maps(told.out), into: told.into && maps(told.into) };
  }

  function headMap(n, frame, out) {
    const [, f, h, w] = found.shape, row = n * f + store.latent(frame), at = row * h * w;
    for (let i = 0; i < h * w; i++) out[i] += (found.values[at + i] / 255) * found.scales[row];
  }
  function showHeads() {
    const [heads, , h, w] = found.shape;
    muted = new Set([...muted].filter((n) => n < heads));
    tiles.hidden = false;
    tiles.replaceChildren(...Array.from({ length: heads }, (_, n) => {
      const tile = el("canvas", { width: w, height: h }), map = new Float32Array(h * w);
      headMap(n, state.frame, map);
      tile.getContext("2d").drawImage(host.coloured(map, h, w, 1), 0, 0);
      const node = el("button", { type: "button", className: "fm-head-tile", title: "Shown and kept for the mask, or not", onclick: () => {
        muted.delete(n) || muted.add(n);
        if (muted.size === heads) muted.clear();
        host.changed();
        showHeads();
      } }, tile, `${n + 1}`);
      node.ariaLabel = `Head ${n + 1}`;
      node.ariaPressed = !muted.has(n);
      return node;
    }));
  }

  function showPlace() {
    toward.node.hidden = !found.out;
    words.hidden = times.hidden = false;
    const told = found.told.map((share, at) => [share, value.words[at].name]).sort((a, b) => b[0] - a[0]);
    words.textContent = `In words: ${told.slice(0, 6).map(([share, name]) => `${name} ${percent(share)}`).join(", ")}.`
      + (found.out ? "" : " This block has no self-attention of its own.") + (found.track ? " The ring on the players follows it over the frames." : "");
    times.hidden = !found.temporal;
    const most = Math.max(...(found.temporal ?? [1]));
    times.replaceChildren("In time:", ...(found.temporal ?? []).map((share, f) => el("i", { style: `height: ${(24 * share) / most}px`, title: `Frame ${f + 1}: ${percent(share)}` })));
  }

  return {
    node,
    /** The maps of the heads that are kept, by frame, in the place of the cell's; null where they are not shown. */
    maps() {
      if (state.view !== "heads" || !found) return null;
      const [heads, , h, w] = found.shape;
      return Array.from({ length: value.frames }, (_, frame) => {
        const out = new Float32Array(h * w);
        for (let n = 0; n < heads; n++) if (!muted.has(n)) headMap(n, frame, out);
        return out.map((p) => p / (heads - muted.size));
      });
    },
    /** Whether the mask that is shown leaves heads out. */
    partial: () => state.view === "heads" && !!found && muted.size > 0,
    /** The one head that is kept, counted from 1; 0 where there are several. */
    head: () => (state.view === "heads" && found && muted.size === found.shape[0] - 1 ? [...Array(found.shape[0]).keys()].find((n) => !muted.has(n)) + 1 : 0),
    /** Draws features or a place's attention; false where there is nothing of that to draw. */
    draw(canvas, context, layer) {
      if (!found || !["features", "place"].includes(state.view)) return false;
      const latent = store.latent(state.frame);
      if (state.view === "features") {
        const [, h, w] = found.shape, picture = el("canvas", { width: w, height: h }), image = new ImageData(w, h);
        for (let i = 0, at = latent * h * w; i < h * w; i++) image.data.set([...found.colours.subarray(3 * (at + i), 3 * (at + i) + 3), 255], 4 * i);
        picture.getContext("2d").putImageData(image, 0, 0);
        layer(picture, state.opacity, false);
        return true;
      }
      const shown = found[toward.select.value];
      if (shown) {
        const [, h, w] = shown.shape, map = new Float32Array(h * w);
        for (let i = 0, at = latent * h * w; i < h * w; i++) map[i] = (shown.values[at + i] / 255) * shown.scales[latent];
        layer(host.coloured(map, h, w, state.opacity, Math.max(...shown.scales)), 1, state.smooth);
      }
      const [x, y] = found.track?.[latent] ?? place, radius = Math.max(5, canvas.width / 40);
      for (const [style, thick] of [["#000", 4], ["#fff", 2]]) {
        context.beginPath();
        context.arc(x * canvas.width, y * canvas.height, radius, 0, 2 * Math.PI);
        Object.assign(context, { strokeStyle: style, lineWidth: thick });
        context.stroke();
      }
      return true;
    },
    track: () => (state.view === "place" && found?.track ? found.track : null),
    /** Another place is asked for: shares of the width and the height. */
    pick(x, y) {
      place = [within(0, 0.999, x), within(0, 0.999, y), store.latent(state.frame)];
      look();
    },
    move(dx, dy) {
      const { h, w } = sites[state.cell[0]];
      this.pick(place[0] + dx / w, place[1] + dy / h);
    },
    update(what) {
      if (["words", "cell", "look"].includes(what)) look();
      if (what === "frame" && state.view === "heads" && found && !state.playing) showHeads();
    },
  };
}
